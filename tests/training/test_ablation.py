from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from composir.errors import ComposirError
from composir.training import ablation
from composir.training.ablation import ablate, make_plan, moving_average, read_steps, roughness
from composir.training.ablation_report import write_report


@pytest.fixture
def settings(shapes_root):
    return {"data_root": str(shapes_root), "backbone": "tiny", "num_epochs": 2, "batch_size": 8, "dataset": "CIRR"}


VARY = {"gated_fusion": ["false", "true"]}


@pytest.fixture(scope="session")
def ablated(shapes_root, tmp_path_factory):
    """Two arms with two seeds on the little shapes."""
    out = tmp_path_factory.mktemp("ablation")
    given = {"data_root": str(shapes_root), "backbone": "tiny", "num_epochs": 2, "batch_size": 8, "dataset": "CIRR"}
    return given, out, ablate(given, vary=VARY, seeds=[0, 3], out=out)


def test_every_arm_is_trained_with_every_seed(ablated):
    _, out, done = ablated
    assert [(run.arm, run.seed) for run in done.runs] == [
        ("gated_fusion=false", 0),
        ("gated_fusion=true", 0),
        ("gated_fusion=false", 3),
        ("gated_fusion=true", 3),
    ]
    assert [row.name for row in done.comparison.rows] == ["gated_fusion=false", "gated_fusion=true"]
    (difference,) = done.comparison.differences
    figures = {(run.arm, run.seed): run.metrics["mean_r5_rs1"] for run in done.runs}
    changes = [figures["gated_fusion=true", seed] - figures["gated_fusion=false", seed] for seed in (0, 3)]
    assert difference.delta == pytest.approx(np.mean(changes))
    assert (difference.num_seeds, difference.num_queries) == (2, 24)
    assert difference.over_seeds.test == "paired t"
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["gated_fusion=false", "gated_fusion=true"]


def test_losses_are_those_of_every_step(ablated):
    _, _, done = ablated
    run = done.runs[0]
    losses, seconds = read_steps(run.run)
    assert losses.shape == (6,)  # 24 triplets in batches of 8, twice
    assert done.losses["gated_fusion=false"].shape == (2, 6)
    np.testing.assert_array_equal(done.losses["gated_fusion=false"][0], losses)
    assert run.mean_loss == pytest.approx(losses.mean())
    assert len(seconds) == 4  # five gaps, less the one with the validation
    assert run.seconds_per_step > 0
    means = [one for one in done.training if one.figure == "mean_loss"]
    by_arm = {arm: losses.mean(axis=1) for arm, losses in done.losses.items()}
    test = stats.ttest_rel(by_arm["gated_fusion=true"], by_arm["gated_fusion=false"])
    assert means[0].over_seeds.p_value == pytest.approx(test.pvalue, rel=1e-4)


def test_finished_trainings_are_not_repeated(ablated):
    given, out, done = ablated
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}

    def no_training(*arguments, **named):
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("composir.training.ablation.train", no_training)
        again = ablate(given, vary=VARY, seeds=[0, 3], out=out)
    assert again.to_json() == done.to_json()
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_another_seed_trains_only_what_is_new(ablated, tmp_path):
    given, out, _ = ablated
    shutil.copytree(out, tmp_path / "out")  # the folder may move
    told = []
    done = ablate(given, vary=VARY, seeds=[3], out=tmp_path / "out", tell=lambda *words: told.append(words))
    assert [run.seed for run in done.runs] == [3, 3]
    assert done.comparison.differences[0].over_seeds is None
    assert told[0] == ("trainings: gated_fusion=false seed 3", 0, 2)


def test_a_stopped_training_goes_on(settings, tmp_path, monkeypatch):
    """Stop the first training after its first epoch; the second call ends where an unbroken one does."""
    real = ablation.train

    def stop_early(recipe, *, resume, observer, **cache):
        real(recipe.model_copy(update={"num_epochs": 1}), resume=resume, observer=observer, **cache)
        (run,) = (tmp_path / "stopped/runs/gated_fusion=false/seed-0").iterdir()
        (run / "recipe.toml").write_text(recipe.to_toml())
        return type("Stopped", (), {"interrupted": True})

    settings |= {"schedule_epochs": 2}
    monkeypatch.setattr(ablation, "train", stop_early)
    assert ablate(settings, vary=VARY, seeds=[0], out=tmp_path / "stopped") is None
    monkeypatch.setattr(ablation, "train", real)
    resumed = ablate(settings, vary=VARY, seeds=[0], out=tmp_path / "stopped")
    unbroken = ablate(settings, vary=VARY, seeds=[0], out=tmp_path / "unbroken")
    assert [run.metrics for run in resumed.runs] == [run.metrics for run in unbroken.runs]
    assert [run.mean_loss for run in resumed.runs] == [run.mean_loss for run in unbroken.runs]


def test_all_combinations_are_planned(settings, tmp_path):
    plan = make_plan(
        settings, vary={"alpha_init": ["0.1", "0.5"], "weight_decay": ["0.0", "0.1"]}, seeds=[1, 2], out=tmp_path
    )
    assert len(plan) == 8
    assert plan[1].arm == "alpha_init=0.1,weight_decay=0.1"
    assert (plan[1].recipe.alpha_init, plan[1].recipe.weight_decay, plan[1].recipe.seed) == (0.1, 0.1, 1)
    assert len({one.recipe.output_dir for one in plan}) == 8


@pytest.mark.parametrize(
    ("vary", "seeds", "message"),
    [
        ({"gated_fusio": ["false", "true"]}, [0], "unknown key 'gated_fusio'"),
        ({"weight_decay": ["0.1", "many"]}, [0], "weight_decay = 'many'"),
        ({"eps": ["4"]}, [0], "--vary eps=4 does not compare different values"),
        ({"eps": ["4", "4"]}, [0], "--vary eps=4,4 does not compare different values"),
        ({"num_epochs": ["1", "2"]}, [0], "num_epochs is given both as a setting and to --vary"),
        ({"seed": ["1", "2"]}, [0], "seed cannot be varied; fix: --seeds gives the seeds"),
        ({}, [0], "nothing to compare"),
        (VARY, [0, 0], "nothing to compare; expected a key with its values, and seeds, each once"),
    ],
)
def test_what_cannot_be_planned_is_said_before_anything_is_trained(settings, tmp_path, vary, seeds, message):
    with pytest.raises(ComposirError, match=message):
        ablate(settings, vary=vary, seeds=seeds, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_must_be_saved(settings, tmp_path):
    with pytest.raises(ComposirError, match="an ablation compares what is saved; fix: leave --no-save-training out"):
        ablate({**settings, "save_training": False}, vary=VARY, seeds=[0], out=tmp_path)


def test_finished_runs_of_another_recipe_are_not_taken(ablated):
    given, out, _ = ablated
    with pytest.raises(ComposirError, match="by another recipe: num_epochs was 2 and is now 3; fix: give another"):
        ablate({**given, "num_epochs": 3}, vary=VARY, seeds=[0, 3], out=out)


def test_a_setting_that_is_newer_than_the_runs_counts_as_its_default(ablated, tmp_path):
    given, out, done = ablated
    shutil.copytree(out, tmp_path / "out")
    for file in (tmp_path / "out").rglob("recipe.toml"):
        file.write_text(file.read_text().replace("gate_layer_norm = false\n", ""))
    again = ablate(given, vary=VARY, seeds=[0, 3], out=tmp_path / "out")
    assert [run.metrics for run in again.runs] == [run.metrics for run in done.runs]
    with pytest.raises(ComposirError, match="by another recipe: gate_layer_norm was False and is now True"):
        ablate({**given, "gate_layer_norm": True}, vary=VARY, seeds=[0, 3], out=tmp_path / "out")


def test_the_moving_average_by_hand():
    losses = np.arange(27.0)
    # Means of 0..24, 1..25, 2..26.
    assert moving_average(losses).tolist() == pytest.approx([12, 13, 14])
    assert moving_average(np.array([1.0, 3.0])).tolist() == [2.0]  # of all where there are fewer


def test_roughness_by_hand():
    assert roughness(100 - np.arange(60.0)) == pytest.approx(0, abs=1e-12)
    assert roughness(np.ones(10)) == 0
    alternating = 10 + (-1.0) ** np.arange(75)  # 11, 9, 11, ...: over 25 steps 10 + 1 / 25 or 10 - 1 / 25
    # The middle of a window that begins with 11 is 11, so it deviates by 0.96 from 10.04, else by -0.96 from 9.96.
    deviations = np.where(np.arange(51) % 2 == 0, 0.96 / 10.04, -0.96 / 9.96)
    assert roughness(alternating) == pytest.approx(deviations.std())


def test_the_report_holds_every_figure(ablated, tmp_path):
    _, _, done = ablated
    files = write_report(done, tmp_path, command="composir ablate --name '<b>'")
    assert set(files) == {"json", "markdown", "html", "losses"}
    assert json.loads(files["json"].read_text()) == json.loads(json.dumps(done.to_json()))
    markdown, html = files["markdown"].read_text(), files["html"].read_text()
    for run in done.runs:
        row = f"| {run.arm} | {run.seed} | {100 * run.metrics['recall_at_1']:.2f} |"
        assert row in markdown
        assert run.run.name in html
    assert f"{100 * done.comparison.differences[0].delta:+.2f}" in html
    assert "composir ablate --name &#39;&lt;b&gt;&#39;" in html
    assert "<b>" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert files["losses"].read_bytes().startswith(b"\x89PNG")
