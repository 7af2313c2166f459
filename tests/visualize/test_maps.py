from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from composir.visualize import MAPS
from composir.visualize.maps import limits_by_map
from composir.web.pictures import heat_limits


def test_an_end_of_a_bar_is_not_zero_where_it_is_not():
    influence = next(one for one in MAPS if one.key == "influence")
    assert [influence.told(value) for value in (0.0, 0.0004, 12.34, -0.02)] == ["0.0", "0.0004", "12.3", "-0.02"]


def test_limits_are_shared_and_even_maps_look_even():
    gate = next(one for one in MAPS if one.key == "gate")
    assert gate.limits([np.array([[0.50, 0.52]])]) == pytest.approx((0.46, 0.56))  # 0.02 apart, shown 0.1 wide
    assert gate.limits([np.array([[0.1, 0.2]]), np.array([[0.5, 0.9]])]) == pytest.approx((0.1, 0.9))
    change = next(one for one in MAPS if one.key == "relative_change")
    assert change.limits([np.array([[1.0, 2.0]])]) == (0, 2)
    worth = next(one for one in MAPS if one.diverging)
    assert worth.limits([np.array([[1.0, -2.0]])]) == (-2, 2)


def test_what_a_fusion_of_somebody_else_s_shows_is_drawn_by_its_name():
    nothing = {one.key: None for one in MAPS}
    length = np.array([3.0, 5.0, 4.0, 3.5], np.float32)
    limits = limits_by_map([SimpleNamespace(maps={"length": length}, **nothing)])
    assert [(one.key, one.title, held) for one, held in limits.items()] == [("length", "length", (3, 5))]
    (drawn,) = limits
    assert drawn.values(SimpleNamespace(maps={"length": length})).tolist() == [[3, 5], [4, 3.5]]
    assert heat_limits("length", length.reshape(2, 2)) == (3, 5)
