from __future__ import annotations

import json

import pytest


def test_ablate_takes_the_flags_of_train_and_prints_what_the_contract_names(run, shapes_root, tmp_path):
    flags = (
        "ablate", "--seeds", "2", "--out", tmp_path / "out", "--vary", "alpha-init=0,0.5", "--metric", "recall_at_1",
        "--dataset", "CIRR", "--data-root", shapes_root, "--backbone", "tiny", "--num-epochs", 1, "--batch-size", 12,
    )  # fmt: skip
    code, out, err = run(*flags, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {"rows", "differences", "runs"} <= set(document)
    assert [difference["metric"] for difference in document["differences"]] == ["recall_at_1"]
    assert [(run["arm"], run["seed"]) for run in document["runs"]] == [
        ("alpha_init=0", 0),
        ("alpha_init=0.5", 0),
        ("alpha_init=0", 1),
        ("alpha_init=0.5", 1),
    ]
    code, out, err = run(*flags)
    assert code == 0, err
    assert "Differences" in out
    assert "report: " in out
    assert (tmp_path / "out/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "many"], "--seeds 'many' are no numbers; expected how many, from 1 to 1,000, or which ones"),
        (["--seeds", "0"], "--seeds '0' is out of range; expected how many, from 1"),
        (["--seed", "3"], "ablate has seeds and stopped trainings of its own"),
        (["--vary", "alpha_init"], "--vary 'alpha_init' has no values; expected key=a,b"),
        (["--vary", "alpha_init=0,1", "--vary", "alpha-init=2,3"], "--vary 'alpha-init=2,3' repeats a key"),
        (["--bacbone", "tiny"], "--backbone"),
        (["--vary", "text_rule=as annotated,in a prompt"], "results on other sentences are not compared"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_trained(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("ablate", "--backbone", "tiny", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
