"""What docs/judges.md tells is run, and prints what the page says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/judges.md"


def blocks(kind: str) -> list[str]:
    """The page's blocks of one kind, in their order."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_page_s_commands_print_what_the_page_says(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (script,) = blocks("python")
    Path("judge.py").write_text(script, encoding="utf-8")
    printed = ""
    for line in "".join(blocks("bash")).splitlines():
        program, *arguments = shlex.split(line)
        if program == "python":
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", arguments)
                runpy.run_path(arguments[0])
            continue
        code, out, err = run(*arguments)
        assert code == 0, err
        printed += "\n".join(text.rstrip() for text in out.splitlines()) + "\n"
    told = blocks("text")
    assert len(told) == 3
    for text in told:
        assert text in printed
