"""Newcomers follow the documents, every command of a page; what needs no more than photographs stands in
tests/test_readme.py and tests/test_notebooks.py.

What stands in for what they would have: scenes for the licensed pictures, small weights in the files that LAVIS
publishes, one step for a training. Nothing else of a command is changed.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from composir.cli import main
from composir.models.transfer import SPRC_CLASS
from composir.samples import SAMPLES
from composir.web import log
from composir.web.server import Server

ROOT = Path(__file__).parent.parent
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:composir|python) [^`…]* [^`…]*)`")
COMMENT = re.compile(r"\s+#.*")
SHORT = "--max-steps 1 --num-workers 0"


def commands(page, section=""):
    """Return the commands of a page, or of the section of that name: those in blocks, then those in sentences."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = "".join(FENCED.findall(text)).replace("\\\n", " ")
    lines = [COMMENT.sub("", line) for line in blocks.splitlines()]
    return [" ".join(line.split()) for line in [*lines, *INLINE.findall(FENCED.sub("", text))] if line.strip()]


def follow(command):
    """Run a command as the shell would, in this process; it must end well."""
    AcceleratorState._reset_state()  # accelerate keeps to the first precision of a process
    program, *arguments = shlex.split(command)
    with pytest.raises(SystemExit) as stop:
        if program == "composir":
            main(arguments)
        else:
            assert program == "python"
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    assert not stop.value.code, command


@pytest.fixture
def desk(tmp_path, monkeypatch, whole, small_heads):
    """Return the folder that a newcomer works in: a clone's files, CIRR's place with scenes in it, BLIP-2's weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    for name in ("recipes", "src", "test_gated_fusion.py"):
        Path(name).symlink_to(ROOT / name)
    follow("composir data scenes --out cirr_dataset --images 144")
    Path("weights").mkdir()
    weights = whole(vocabulary=30_523)
    tower = {key for key in weights if key.startswith("visual_encoder.")}
    torch.save({"model": {key: weights[key] for key in weights.keys() - tower}}, "weights/blip2_pretrained.pth")
    torch.save({key.removeprefix("visual_encoder."): weights[key].half() for key in tower}, "weights/eva_vit_g.pth")
    yield tmp_path
    AcceleratorState._reset_state()


def newest_run():
    return max(Path("models").glob("clip_*"), key=lambda run: run.stat().st_mtime)


def test_photographs(tmp_path, monkeypatch):
    """README, "Search your photographs", with a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Pictures/holiday"
    folder.mkdir(parents=True)
    for name in ("cat.jpg", "raccoon.jpg", "teapot.jpg"):
        shutil.copy(SAMPLES / name, folder)
    served = []
    monkeypatch.setattr(Server, "run", lambda self: served.append(self.address))
    monkeypatch.setattr(log, "log_as_json", lambda: None)
    index, page, *_ = commands("README.md", "Search your photographs")
    assert index.endswith(" ~/Pictures/holiday")
    follow(index.replace("~", str(tmp_path)))
    follow(f"{page} --port 0")
    (address,) = served
    assert address.startswith("http://127.0.0.1:")


def test_cirr_from_download_to_submission(desk):
    """docs/tutorials/cirr.md."""
    todo = commands("docs/tutorials/cirr.md")
    assert len(todo) == 8
    (training,) = (f"{command} {SHORT}" for command in todo if "--config" in command)
    for command in todo:
        if command.startswith("composir data scenes"):
            follow(command.replace("--images 600", "--images 144"))
        elif "--config" in command:
            follow(training)
        elif command.startswith("composir compare"):
            for number, name in enumerate("ABCDEF"):
                follow(f"{training} --fusion {('none', 'gate')[number // 3]} --seed {number % 3}")
                newest_run().rename(f"models/{name}")
            follow(command)
        elif "models/RUN" in command:
            follow(command.replace("models/RUN", str(newest_run())))
        else:
            follow(command)
    assert Path("report/index.html").is_file()
    for name in ("recall", "recall_subset"):
        assert len(json.loads(Path(f"submission/cirr_test1_{name}.json").read_text())) == 44 + 2  # version and metric


def test_from_the_gated_fusion_fork(desk, fashion_root, whole):
    """GATED_FUSION_README.md, and then README, "From the gated-fusion fork"."""
    Path("fashionIQ_dataset").symlink_to(fashion_root)
    todo = commands("GATED_FUSION_README.md")
    assert len(todo) == 6
    for command in todo:
        if command.startswith("python src"):
            follow(f"{command} --weights weights {SHORT}")
            newest_run().rename(f"models/{'A' if 'CIRR' in command else 'FashionIQ'}")
        elif command.startswith("composir ablate"):
            small = command.replace("path/to/data", "cirr_dataset").replace("mini", "tiny")
            follow(small.replace("--seeds 5", "--seeds 2").replace("--max-steps 200", "--max-steps 2"))
        elif command.startswith("composir compare"):
            (training,) = (one for one in todo if one.startswith("python src") and "CIRR" in one)
            follow(f"{training} --weights weights {SHORT} --no-gated-fusion")
            newest_run().rename("models/B")
            follow(command)
        else:
            follow(command)
    runs = json.loads(Path("ablation/ablation.json").read_text())["runs"]
    assert [run["arm"] for run in runs] == ["gated_fusion=false", "gated_fusion=true"] * 2

    todo = commands("README.md", "From the gated-fusion fork")
    assert len(todo) == 5
    picture = next(Path("cirr_dataset/dev").glob("*.png"))
    theirs = whole(vocabulary=30_523, prompt=True)
    torch.save({SPRC_CLASS: theirs}, "tuned_blip_best.pt")
    for command in todo:
        follow(command.replace("models/RUN", "models/A").replace("PICTURE", str(picture)).replace("SENTENCE", "red"))
    assert Path("map.png").is_file()
    back = torch.load("back.pt", weights_only=True)[SPRC_CLASS]
    assert len(back) > 100
    assert all(torch.equal(value, theirs[name]) for name, value in back.items())
    assert Path("submission/cirr_test1_recall.json").is_file()
