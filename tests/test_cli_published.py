"""Every flag of the published scripts is taken, or answered with what to do instead."""

from __future__ import annotations

import pytest
import typer

from composir.cli.common import app
from composir.cli.published import INSTEAD

SPRC, FORK = "github.com/chunmeifeng/SPRC @ 2935a53: src/", "github.com/aizhao/SPRC- @ e1eb0c5: src/"
SCRIPTS = {
    SPRC + "blip_fine_tune_2.py": (
        "train",
        "--dataset --data-path --num-workers --num-epochs --blip-model-name --backbone --learning-rate --batch-size "
        "--loss-align --loss-rtc --loss-itm --validation-frequency --target-ratio --transform --save-training "
        "--save-best --save-memory",
    ),
    FORK + "blip_fine_tune_2.py": (
        "train",
        "--loss-region --use-region-loss --box-file --use-hard-negatives --hard-negative-ratio --hard-negative-weight "
        "--hard-negative-db",
    ),
    SPRC + "blip_validate.py": ("evaluate", "--dataset --blip-model-name --backbone --model-path"),
    SPRC + "validate_blip.py": (
        "evaluate",
        "--dataset --blip-model-name --blip-model-path --target-ratio --transform",
    ),
    SPRC + "validate_blip_rerank.py": (
        "evaluate",
        "--dataset --combining-function --combiner-path --projection-dim --hidden-dim --clip-model-name "
        "--clip-model-path --target-ratio --transform",
    ),
    SPRC + "cirr_test_submission.py": ("submit", "--blip-model-name --model-path --backbone --rerank"),
}
FLAGS = [
    pytest.param(command, flag, id=f"{script.rpartition('/')[2]} {flag}")
    for script, (command, flags) in SCRIPTS.items()
    for flag in flags.split()
]


def taken_by(command):
    return {name for parameter in typer.main.get_command(app).commands[command].params for name in parameter.opts}


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_a_flag_of_the_published_scripts_is_taken_or_answered(run, command, flag):
    if flag in taken_by(command):
        assert flag not in INSTEAD[command]
        return
    code, out, err = run(command, f"{flag}=1")
    assert (code, out) == (2, "")
    assert err == f"error: {flag} is a flag of the published scripts; fix: {INSTEAD[command][flag]}\n"


def test_nothing_is_answered_that_no_script_has():
    for command, instead in INSTEAD.items():
        published = {flag for one, flags in SCRIPTS.values() if one == command for flag in flags.split()}
        assert set(instead) <= published


def test_an_ablation_answers_as_a_training_does(run):
    code, _, err = run("ablate", "--loss-itm", "1")
    assert code == 2
    assert INSTEAD["train"]["--loss-itm"] in err


def test_the_published_data_path_is_the_data_root(run, tmp_path):
    code, _, err = run("train", "--backbone", "tiny", "--data-path", tmp_path / "cirr_dataset")
    assert code == 2
    assert f"{tmp_path / 'cirr_dataset'}: no such folder" in " ".join(err.split())
