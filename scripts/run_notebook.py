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

BAR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|^.*[━╸╺].*$")
"""A progress bar, and what moves the cursor for it: a page needs no copy."""
TIMEOUT_SECONDS = 600


def run_notebook(file: Path, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook with what its cells print in ``folder``; a cell that fails raises ``CellExecutionError``.

    The package's own folder stands in what is printed as ``composir/``, and progress bars and stderr are left out.
    """
    notebook = nbformat.read(file, as_version=4)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["COLUMNS"] = "100"
    NotebookClient(notebook, timeout=TIMEOUT_SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran, which changes every time
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output["text"] = _shown(output["text"])
    return notebook


def _shown(text: str) -> str:
    lines = [BAR.sub("", line).strip("\r") for line in text.splitlines()]
    told = "\n".join(line for line in lines if line.strip()) + "\n"
    return told.replace(f"{Path(composir.__file__).parent}{os.sep}", "composir/")


def main() -> None:
    """Run the notebooks that are named and write them back."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run_notebook(Path(name), Path(folder)), name)


if __name__ == "__main__":
    main()
