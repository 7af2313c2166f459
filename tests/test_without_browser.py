"""Without a browser the browser tests are left out, and it is said aloud."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_browser_tests_that_cannot_run_are_counted_aloud(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/browser", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    num_tests = (ROOT / "tests" / "browser" / "test_page.py").read_text(encoding="utf-8").count("\ndef test_")
    assert num_tests > 5
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("NOT RUN: ")]
    assert line.endswith(
        " browser tests, as there is no `chromium` on the path; to run them: "
        "apt-get install chromium (Debian), or link another Chromium under that name"
    )
    assert int(line.split()[2]) >= num_tests
    assert "passed" not in done.stdout
    assert done.returncode == 5  # no test ran
