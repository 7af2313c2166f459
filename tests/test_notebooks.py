"""What the tutorials' notebooks show is what their cells print, in every language."""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import groupby
from pathlib import Path

import nbformat
import pytest

from composir.cli import main

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs/tutorials"
NAMES = ("first-search", "own-model")
CHANGING = re.compile(r"\d{4}-\d\d-\d\d_\d\d\.\d\d\.\d\d|head-[0-9a-f]{16}|\d+ \(\d+%\)|  \(best\)| +│")
"""What another processor may print otherwise, where it trains otherwise, and dates."""
NUMBER = re.compile(r"\d+\.\d+")
TOLERANCE = {"first-search": {3: 0.003}, "own-model": {2: 8, 3: 0.1, 4: 0.5}}
"""How far off a number may be, by its digits after the point: percents 2, scores 3, losses 4."""


@pytest.fixture(scope="module")
def shown():
    """Return the function of the script that made the notebooks, which leaves out what differs at every run."""
    described = importlib.util.spec_from_file_location("run_notebook", ROOT / "scripts/run_notebook.py")
    script = importlib.util.module_from_spec(described)
    described.loader.exec_module(script)
    return script.shown


def code_cells(file):
    return [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]


def shell(command):
    if not command.startswith("composir "):
        sys.stdout.write(subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout)
        return
    with pytest.raises(SystemExit) as stop:  # in this process, which has torch loaded
        main(shlex.split(command)[1:])
    assert stop.value.code == 0, command


def printed(source, names):
    """Return what a cell prints; its ``!`` lines are commands, with ``{}`` for what the cells before have named."""
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        for is_command, lines in groupby(source.splitlines(), lambda line: line.startswith("!")):
            if is_command:
                for line in lines:
                    shell(eval(f"f{line[1:]!r}", names))
            else:
                exec("\n".join(lines), names)
    return told.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_print_what_it_shows(name, tmp_path, monkeypatch, shown):
    monkeypatch.chdir(tmp_path)
    names = {}
    num_numbers = 0
    for cell in code_cells(TUTORIALS / f"{name}.ipynb"):
        kept = "".join(one["text"] for one in cell.outputs if one.output_type == "stream")
        lines, expected = (CHANGING.sub("", text) for text in (shown(printed(cell.source, names), tmp_path), kept))
        assert NUMBER.sub("0", lines) == NUMBER.sub("0", expected)
        for one, other in zip(NUMBER.findall(lines), NUMBER.findall(expected), strict=True):
            tolerance = TOLERANCE[name].get(len(other.partition(".")[2]), 0)
            assert float(one) == pytest.approx(float(other), abs=tolerance), lines
            num_numbers += 1
    assert num_numbers > 10


@pytest.mark.parametrize("name", NAMES)
def test_the_chinese_one_has_the_same_cells_and_outputs(name):
    english, chinese = (code_cells(TUTORIALS / folder / f"{name}.ipynb") for folder in ("", "zh"))
    assert [(cell.source, cell.outputs) for cell in chinese] == [(cell.source, cell.outputs) for cell in english]
