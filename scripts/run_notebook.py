"""Run a notebook of the tutorials from its first cell to its last in a folder of its own, and keep what it prints.

Usage: python scripts/run_notebook.py docs/tutorials/NAME.ipynb...
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import composir

PASSING = re.compile(
    r"^[\w :]+: [\d,]+ of [\d,]+\b.*$| (in|after) [\d.]+ m?s$|  [\d,]+ images/s\b|\x1b\[[0-9;?]*[A-Za-z]"
)
"""What is another at every run: lines of progress, and how long it took on the machine that ran it."""
TIMEOUT_SECONDS = 600


def run_notebook(file: Path, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook with what its cells print in ``folder``; a cell that fails raises ``CellExecutionError``."""
    notebook = nbformat.read(file, as_version=4)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["TTY_COMPATIBLE"] = "0"  # lines instead of progress bars
    NotebookClient(notebook, timeout=TIMEOUT_SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran, which changes every time
        if cell.cell_type == "code":
            streams = [one["text"] for one in cell.outputs if one.get("name") == "stdout"]  # commands' stderr too
            others = [one for one in cell.outputs if one.output_type != "stream"]
            told = shown("".join(streams), folder)
            cell.outputs = [nbformat.v4.new_output("stream", text=told)] * bool(told) + others
    return notebook


def shown(text: str, folder: Path) -> str:
    """Return what a page shows of what was printed in ``folder``.

    The package's own folder stands there as ``composir/``, and what is another at every run is left out.
    """
    text = text.replace(f"{Path(composir.__file__).parent}{os.sep}", "composir/")
    text = text.replace(f"{folder.resolve()}{os.sep}", "")
    lines = [PASSING.sub("", line) for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines if line.strip())


def main() -> None:
    """Run the notebooks that are named and write them back."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run_notebook(Path(name), Path(folder)), name)


if __name__ == "__main__":
    main()
