"""Training in real processes: killed, interrupted, out of room, several at once."""

from __future__ import annotations

import csv
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.training import load_recipe, resume_recipe, train

# What runs in the process before the command: ``at_start`` is called when the first step comes next.
AT_START = """
from composir.cli.train import TrainBars
tell_start = TrainBars.on_start
def on_start(self, *told):
    tell_start(self, *told)
    at_start()
TrainBars.on_start = on_start
"""

SIGNAL = """
import composir.training.loop as loop
step, count = loop.Run._step, []
def signal_after_a_step(self, *arguments):
    step(self, *arguments)
    count.append(1)
    if len(count) == {step}:
        os.kill(os.getpid(), {number})
loop.Run._step = signal_after_a_step
"""

KILL_LATER = """
import threading, time
def at_start():
    def kill():
        time.sleep({seconds})
        os.kill(os.getpid(), 9)
    threading.Thread(target=kill, daemon=True).start()
"""

KILL_IN_A_WRITE = """
def at_start():
    left = [{number}]
    def watch(event, arguments):
        if event == "os.rename":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), 9)
    sys.addaudithook(watch)
"""


@pytest.fixture
def settings(shapes_root, tmp_path):
    return {
        "backbone": "tiny", "data_root": str(shapes_root), "output_dir": str(tmp_path / "models"), "dataset": "CIRR",
        "num_epochs": 2, "batch_size": 5, "save_minutes": 0,
    }  # fmt: skip


@pytest.fixture
def unbroken(settings, tmp_path):
    """Return the trainer of an unbroken run, in this process."""
    more = {"output_dir": str(tmp_path / "unbroken"), "save_minutes": 10}
    return lambda: train(load_recipe({**settings, **more})).run


def command(settings, *more):
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return f"main({['train', *flags, *more]!r})"


def resume(run, *more):
    return f"main({['train', '--resume', str(run), *more]!r})"


def run_folder(settings):
    return next(iter(Path(settings["output_dir"]).glob("clip_finetuned_on_*")), None)


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.01)


def read_log(run):
    with (run / "training_log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(run, other):
    for folder in ("last/model", "best"):
        first, second = (load_file(one / folder / "model.safetensors") for one in (run, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_log(run) == read_log(other)


def test_kills_at_any_moment_cost_nothing(settings, unbroken, spawn, request):
    """Half of the kills come at a random moment, half in the middle of a write; after each the run goes on."""
    num_kills, chance = request.config.getoption("--kills"), random.Random(0)
    settings["num_epochs"] = max(2, num_kills)
    expected = unbroken()
    call, num_killed, num_in_writes = command(settings), 0, 0
    for number in range(num_kills):
        if number % 2:
            harm = KILL_IN_A_WRITE.format(number=chance.randint(1, 12))
        else:
            harm = KILL_LATER.format(seconds=chance.uniform(0, 0.4))
        code, words = spawn(harm + AT_START + call).end()
        assert code in (-signal.SIGKILL, 0), words
        run = run_folder(settings)
        num_killed += code != 0
        num_in_writes += any(path.name.endswith((".part", ".old")) for path in run.rglob(".*"))
        call = resume(run)
    assert num_killed == num_kills, "the run came to its end before all kills"
    assert num_in_writes >= num_kills // 2
    code, words = spawn(call).end()
    assert code == 0, words
    assert [row["epoch"] for row in read_log(run)] == [str(epoch + 1) for epoch in range(settings["num_epochs"])]
    assert_same_run(run, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(settings, unbroken, spawn, number):
    settings["save_minutes"] = 10
    code, words = spawn(SIGNAL.format(step=3, number=int(number)) + command(settings)).end()
    run = run_folder(settings)
    assert code == 130, words
    assert f"composir train --resume {run}" in words.replace("\n", " ")
    assert torch.load(run / "last/training.pt")["state"]["step"] == 3
    assert_same_run(train(resume_recipe(run), resume=run).run, unbroken())


FULL_DISK = """
def at_start():
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1))
"""


def test_a_disk_that_fills_up_ends_with_one_line_and_the_last_state(settings, unbroken, spawn):
    """A limit on the size of files fails as a full disk does, in the middle of a write."""
    code, words = spawn(FULL_DISK + AT_START + command(settings)).end()
    run = run_folder(settings)
    assert code == 2, words
    assert "Traceback" not in words
    assert "cannot be written" in words
    assert "composir train --resume" in words
    assert_same_run(train(resume_recipe(run), resume=run).run, unbroken())


def test_a_folder_that_is_read_only_is_told_before_anything_is_trained(settings, spawn):
    code, words = spawn(command({**settings, "output_dir": "/sys/models"})).end()
    assert code == 2
    assert "/sys/models: cannot be written to" in words
    assert "--output-dir" in words


VANISH = """
def at_start():
    os.rename({root!r}, {root!r} + ".away")
"""


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_a_data_root_that_vanishes_costs_nothing(settings, unbroken, spawn, tmp_path, cache):
    """With the tokens on disk training does not need it any more; without, the run stops and can go on."""
    root = tmp_path / "root"
    shutil.copytree(settings["data_root"], root)
    settings["data_root"] = str(root)
    harm = VANISH.format(root=str(root)) + AT_START
    code, words = spawn(harm + command(settings, "--cache", cache), COMPOSIR_CACHE=str(tmp_path / "cache")).end()
    (tmp_path / "root.away").rename(root)
    run = run_folder(settings)
    assert code == (0 if cache == "disk" else 2), words
    if cache == "off":
        assert "no such image file" in words
        assert "Traceback" not in words
        train(resume_recipe(run), resume=run)
    assert_same_run(run, unbroken())


def test_two_processes_do_not_train_one_run(settings, spawn):
    settings["num_epochs"] = 500
    first = spawn(command(settings))
    wait_for(lambda: run_folder(settings) and (run_folder(settings) / "training_log.csv").exists())
    code, words = spawn(resume(run_folder(settings))).end()
    assert code == 2
    assert "another process is training this run" in words
    first.process.kill()
    first.end()
    code, words = spawn(SIGNAL.format(step=1, number=int(signal.SIGINT)) + resume(run_folder(settings))).end()
    assert code == 130, words  # the lock went with its process


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(spawn):
    """Return the starter of two processes that train together, as torchrun starts them."""

    def start(code, other=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        return [
            spawn(one, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank, one in enumerate((code, code if other is None else other))
        ]

    return start


LOSSES = """
import numpy as np, pickle
from accelerate import Accelerator
from composir import parallel
from composir.data import load_splits
from composir.training import load_recipe
from composir.training.composer import ComposerRun
from composir.training.guards import make_accelerator
from composir.training.observer import Silent
Accelerator()
found = []
for loss in ("infonce", "hn-nce"):
    recipe = load_recipe({{**{settings!r}, "contrastive_loss": loss}})
    splits = load_splits("CIRR", recipe.data_root, "train")
    run = ComposerRun(recipe, make_accelerator(recipe), train_splits=splits, val_splits=splits, observer=Silent())
    for size in (8, 7, 1):
        for accumulated in (1, 2):
            run.model.zero_grad()
            for number in range(accumulated):
                batch = run.batches.triplets[number * size : (number + 1) * size]
                *inputs, same, num_all = run.batches.inputs(batch, np.random.default_rng(size))
                losses = run.model.training_losses(
                    *inputs, same_target=same, contrast=run.contrast, local=True, num_all=num_all
                )
                (sum(losses.values()) / accumulated).backward()
            parallel.average_gradients(run.model.parameters())
            gradients = {{
                name: one.grad.clone() for name, one in run.model.named_parameters() if one.grad is not None
            }}
            found.append(({{name: loss.item() for name, loss in losses.items()}}, gradients))
torch.save(found, {out!r} + os.environ.get("RANK", "alone"))
"""


def test_losses_and_gradients_of_two_processes_are_those_of_one(settings, spawn, launch, tmp_path):
    """By each loss, with look-alikes and masks, over batches of eight, seven and one, and two of each before a step."""
    settings |= {"subset_negatives": 2, "mask_same_target": True, "fusion": "gate+late"}
    code = LOSSES.format(settings=settings, out=str(tmp_path / "found-"))
    for child in (spawn(code), *launch(code)):
        assert child.end()[0] == 0, child.printed.read_text()
    alone, first, second = (torch.load(tmp_path / f"found-{name}") for name in ("alone", "0", "1"))
    assert len(alone) == 12
    for expected, *found in zip(alone, first, second, strict=True):
        for losses, gradients in found:
            assert losses == pytest.approx(expected[0], abs=1e-5)
            assert gradients.keys() == expected[1].keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-5)


def test_two_processes_train_what_one_does_and_only_the_first_writes(settings, unbroken, spawn, launch):
    """They are stopped in the middle, too: a signal to one stops both, and both go on."""
    settings |= {"subset_negatives": 1, "mined_ratio": 0.5, "gradient_accumulation": 2, "num_epochs": 3}
    settings |= {"mining_skip": 0, "mining_margin": 0.0}
    settings["eps"] = 1e-2  # AdamW then passes differences of rounding on as small as they are
    plain = command(settings)
    first, second = launch(plain, SIGNAL.format(step=7, number=int(signal.SIGTERM)) + plain)
    assert first.end()[0] == second.end()[0] == 130, first.end()[1] + second.end()[1]
    run = run_folder(settings)
    first, second = launch(resume(run))
    assert first.end()[0] == second.end()[0] == 0, first.end()[1] + second.end()[1]
    assert second.end()[1] == ""
    expected = unbroken()
    assert len(list(Path(settings["output_dir"]).iterdir())) == 1
    weights, others = (load_file(one / "last/model/model.safetensors") for one in (run, expected))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-5)
    rows, other_rows = read_log(run), read_log(expected)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, other in zip(rows, other_rows, strict=True):
        for name in ("loss_itc", "loss_rtc", "loss_align", "total"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-5)


def test_two_processes_train_the_head_that_one_does(settings, unbroken, launch, tmp_path):
    """Of a head without dropout: what is dropped is drawn in each process for itself."""
    save_pretrained(build("tiny").eval(), tmp_path / "base")
    settings |= {"backbone": str(tmp_path / "base"), "head": "gate", "target_map": "true", "learning_rate": 0.01}
    settings |= {"subset_negatives": 1, "eps": 1e-2}
    first, second = launch(command(settings))
    assert first.end()[0] == second.end()[0] == 0, first.end()[1] + second.end()[1]
    settings["target_map"] = True
    weights, others = (load_file(run / "last/model/model.safetensors") for run in (run_folder(settings), unbroken()))
    assert others["target_map.weight"].abs().max() > 1e-3
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-5)


def test_an_error_in_one_process_stops_both_with_one_line(settings, launch):
    fail = """
from composir.errors import ComposirError
from composir.training.batches import Batches
def fail(self, *arguments):
    raise ComposirError("cannot be read", file="some.png")
Batches._read = fail
"""
    first, second = launch(command(settings), fail + command(settings))
    assert first.end()[0] == second.end()[0] == 2, first.end()[1] + second.end()[1]
    assert first.end()[1].count("error:") == 1
    assert "error: some.png: cannot be read" in first.end()[1]
    assert second.end()[1] == ""


def test_a_process_that_is_killed_stops_the_other_with_one_line(settings, launch):
    settings["num_epochs"] = 500
    kill = KILL_LATER.format(seconds=0.3) + AT_START
    first, second = launch(command(settings), kill + command(settings))
    assert second.end()[0] == -signal.SIGKILL
    code, words = first.end()
    assert code == 2
    assert words.count("error:") == 1
    assert "another process of this training was stopped" in words
    assert "Traceback" not in words
    assert (run_folder(settings) / "last/training.pt").is_file()


def test_other_commands_do_not_run_as_several_processes(launch):
    first, second = launch("main(['evaluate', '--model', 'x', '--data-root', 'y'])")
    assert first.end()[0] == second.end()[0] == 2
    assert "composir evaluate was started as 2 processes" in first.end()[1]
    assert second.end()[1] == ""
