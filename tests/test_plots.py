"""What the curves of a run show: not pixels, but what stands on the axes, what is marked and what is said."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from composir import plots
from composir.plots import plot_curves, plot_losses, smoothed
from composir.style import colours

BEST_BY = "R@1"


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, in place of their files."""
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, out: drawn.append(figure))
    return drawn


def row(epoch, **columns):
    return {"epoch": str(epoch), "lr": "0.1", "skipped_steps": "1"} | {
        name: str(value) for name, value in columns.items()
    }


ROWS = [
    row(1, loss_itc=2, total=2.5, alpha=0.5, mean_gate=0.5, gate_entropy=0.9, relative_change=0.1, grad_fusion=0.1),
    row(2, alpha=0.6, mean_gate=0.4, gate_entropy=0.8, relative_change=0.2, grad_fusion=0.2)
    | {"R@1": "30", "R@5": "60"},
    row(3, alpha=0.6, mean_gate=0.3, gate_entropy=0.7, relative_change=0.2, grad_fusion=0.3)
    | {"R@1": "50", "R@5": "70"},
    row(4, alpha=0.6, mean_gate=0.3, gate_entropy=0.7, relative_change=0.2, grad_fusion=0.4)
    | {"R@1": "40", "R@5": "80"},
]
LOSSES = {"step": list(range(1, 41)), "total": list(np.linspace(4, 1, 40)), "loss_itc": list(np.linspace(3, 2, 40))}


def titles(figure):
    return [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]


def lines(axes, colour):
    return [line for line in axes.lines if line.get_color() == colours()[colour]]


def test_each_panel_says_what_is_to_be_seen(figures, tmp_path):
    plot_curves(ROWS, LOSSES, tmp_path / "curves.png", best_by=BEST_BY)
    assert titles(figures[0]) == [
        "The training loss falls from 3.81 to 1.19",  # the means of the first and the last six of 40
        "Best after epoch 3: R@1 50.0 %",
        "The gate is open by 0.30 on average",
        "Gradients are largest in the part “fusion”",
    ]
    assert not any(axes.get_legend() for axes in figures[0].axes)  # names stand at the lines' ends


def test_losses_are_drawn_by_step_faint_with_their_mean_in_full(figures, tmp_path):
    plot_curves(ROWS, LOSSES, tmp_path / "curves.png", best_by=BEST_BY)
    faint, full = sorted(lines(figures[0].axes[0], "composed"), key=lambda line: line.get_alpha() or 1)
    assert faint.get_alpha() < 0.5
    np.testing.assert_array_equal(faint.get_xydata(), np.transpose([LOSSES["step"], LOSSES["total"]]))
    np.testing.assert_allclose(full.get_ydata(), smoothed(LOSSES["total"], 10))
    assert full.get_linewidth() > 2 * faint.get_linewidth()


def test_the_best_validation_is_marked_at_its_epoch(figures, tmp_path):
    plot_curves(ROWS, LOSSES, tmp_path / "curves.png", best_by=BEST_BY)
    (star,) = [line for line in figures[0].axes[1].lines if line.get_marker() == "*"]
    assert star.get_xydata().tolist() == [[3, 50]]
    named = {text.get_text() for text in figures[0].axes[1].texts}
    assert named == {"R@1", "R@5"}  # and neither rate nor count


def test_only_whole_numbers_stand_on_the_axes_of_steps_and_epochs(figures, tmp_path):
    plot_curves(ROWS, {name: values[:3] for name, values in LOSSES.items()}, tmp_path / "curves.png", best_by=BEST_BY)
    figures[0].draw_without_rendering()
    for axes in figures[0].axes:
        low, high = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert shown, axes.get_title(loc="left")
        assert all(float(tick).is_integer() for tick in shown)


def test_of_a_single_validation_there_are_bars_and_no_lone_dots(figures, tmp_path):
    plot_curves(ROWS[:1] + ROWS[2:3], LOSSES, tmp_path / "curves.png", best_by=BEST_BY)
    axes = figures[0].axes[1]
    assert titles(figures[0])[1] == "After epoch 3, the one that was validated: R@1 50.0 %"
    assert [bar.get_width() for bar in axes.patches] == [50, 70]
    assert [text.get_text() for text in axes.texts] == ["50", "70"]
    assert not axes.lines


def test_names_at_the_ends_are_not_over_each_other(figures, tmp_path):
    close = [row(epoch) | {f"R@{k}": str(50 + 0.01 * k + epoch) for k in range(1, 9)} for epoch in (1, 2)]
    plot_curves(close, LOSSES, tmp_path / "curves.png", best_by=BEST_BY)
    figures[0].draw_without_rendering()
    boxes = sorted((Text.get_window_extent(one) for one in figures[0].axes[1].texts), key=lambda box: box.y0)
    assert len(boxes) == 8
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    assert boxes[-1].y1 <= figures[0].bbox.y1


def test_a_run_of_one_step_and_one_without_a_gate_are_drawn(figures, tmp_path):
    one = {name: values[:1] for name, values in LOSSES.items()}
    plot_curves([row(1) | {"R@1": "5"}], one, tmp_path / "curves.png", best_by=BEST_BY)
    assert titles(figures[0]) == ["The training loss is 4.00", "After epoch 1, the one that was validated: R@1 5.0 %"]
    plot_curves([row(1) | {"R@1": "5"}], {}, tmp_path / "curves.png", best_by=BEST_BY)  # of a version without losses
    assert len(figures[1].axes) == 1


def test_the_running_mean_is_worked_by_hand():
    assert smoothed([1, 2, 6, 3], 3).tolist() == [1.5, 3.0, pytest.approx(11 / 3), 4.5]
    assert smoothed([1, 2], 1).tolist() == [1, 2]


def test_the_losses_of_arms_say_which_is_lowest(figures, tmp_path):
    arms = {"a": np.array([[3.0, 2.0], [5.0, 4.0]]), "b": np.array([[3.0, 1.0], [3.0, 1.5]])}
    plot_losses(arms, tmp_path / "losses.png", first_step=25)
    (title,) = titles(figures[0])
    assert title == "At the end the loss is lowest with b: 1.25"
    means = [line for line in figures[0].axes[0].lines if line.get_linewidth() == 2]
    assert [line.get_xydata().tolist() for line in means] == [[[25, 4], [26, 3]], [[25, 3], [26, 1.25]]]


def test_the_file_is_a_picture(tmp_path):
    plot_curves(ROWS, LOSSES, tmp_path / "curves.png", best_by=BEST_BY)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
