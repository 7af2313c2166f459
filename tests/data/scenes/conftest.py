"""What the tests of the generated set share: the smallest one on disk, and the default one, not drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from composir.data.scenes import generate, plan
from composir.data.scenes.planning import MIN_NUM_IMAGES
from composir.data.scenes.world import SceneSplit


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "root"
    generate(out, num_images=MIN_NUM_IMAGES)
    return out


@pytest.fixture(scope="session")
def splits() -> dict[str, SceneSplit]:
    """The default data set, not drawn."""
    return {split.name: split for split in plan()}
