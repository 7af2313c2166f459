"""What stands before a command: the version, the module, completion in a shell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import composir


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"composir {composir.__version__}\n", "")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "composir", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"composir {composir.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "composir", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'nothing'" in done.stderr


@pytest.mark.parametrize(
    ("words", "completed"), [("composir comp", ["compare"]), ("composir train --batch", ["--batch-size"])]
)
def test_a_shell_completes_commands_and_flags(words, completed):
    asked = {"_COMPOSIR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "composir"], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == completed


def test_completion_is_offered_and_help_still_begins_with_what_composir_is(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert "Composed image retrieval: a picture and a sentence" in out.split("Options")[0]
    assert "--install-completion" in out
    assert "--version" in out
