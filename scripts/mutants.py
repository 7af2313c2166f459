"""Plant small bugs in the core, one at a time, and print which of them the tests let live.

The bugs (``+`` for ``-``, ``<`` for ``<=``, 2 for 1, a loop that does not run) are cosmic-ray's; the work is done in a
copy of ``src`` and ``tests``. Each is tried by the tests that belong to its file. With ``--sample`` it is a random part
of them, the same for the same ``--seed``; all of them take many hours.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome

ROOT = Path(__file__).parents[1]
SOURCE = Path("src/composir")
OPTIMIZER_TESTS = "temperature or rates or schedule or max_steps"
TESTS = {
    "models/qformer.py": "tests/models/test_qformer.py tests/models/test_composer.py",
    "models/sprc.py": "tests/models/test_composer.py tests/models/test_fusion.py",
    "models/gated_fusion.py": "tests/models/test_gated_fusion.py tests/models/test_composer.py",
    "losses.py": "tests/test_losses.py tests/models/test_composer.py",
    "evaluation/metrics.py": "tests/evaluation/test_metrics.py",
    "evaluation/ranking.py": "tests/evaluation/test_ranking.py tests/evaluation/test_metrics.py",
    "training/optimizer.py": f"tests/training/test_optimizer.py tests/training/test_loop.py -k '{OPTIMIZER_TESTS}'",
}
"""The files that bugs are planted in, and the tests of each, those that tell soonest first."""
LIMIT_S = 900
"""Tests that run longer have noticed: a bug may make a loop endless."""


def annotated(module: Path) -> set[tuple[int, int]]:
    """Return line and column of everything that stands in an annotation, which Python never computes here."""
    places: set[tuple[int, int]] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        for annotation in (getattr(node, name, None) for name in ("annotation", "returns")):
            if isinstance(annotation, ast.expr):
                lines = range(annotation.lineno, (annotation.end_lineno or 0) + 1)
                ends = annotation.col_offset, annotation.end_col_offset or 0
                places |= {
                    (line, column) for line in lines for column in range(*(ends if len(lines) == 1 else (0, 999)))
                }
    return places


def mutants(module: Path) -> Iterator[MutationSpec]:
    """Yield the bugs that can be planted in a file, in an order that is always the same."""
    skipped = annotated(module)
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init([module], database, {})
        found = [mutation for item in database.work_items for mutation in item.mutations]
    for mutation in sorted(found, key=lambda one: (one.start_pos, one.end_pos, one.operator_name, one.occurrence)):
        if mutation.start_pos not in skipped:
            yield mutation


def main() -> None:
    """Plant bugs and print the share that was noticed, in all and by file, and every one that was not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--sample", type=int, help="so many of the bugs, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument("--only", choices=TESTS, help="one file alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as copy:
        for folder in ("src", "tests"):
            shutil.copytree(ROOT / folder, Path(copy, folder), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(Path(copy, "src")), "OMP_NUM_THREADS": "1"}
        files = [options.only] if options.only else list(TESTS)
        planned = [(file, mutant) for file in files for mutant in mutants(SOURCE / file)]
        say(f"{len(planned):,} bugs can be planted")
        if options.sample is not None:
            planned = random.Random(options.seed).sample(planned, min(options.sample, len(planned)))
        sys.exit(try_all(planned))


def try_all(planned: list[tuple[str, MutationSpec]]) -> int:
    """Try the bugs one by one and print what came of it; return 1 where tests fail without any, else 0.

    A bug that cannot be tried ends it, with 1.
    """
    commands = {
        file: f"{sys.executable} -m pytest -x -q -p no:cacheprovider {TESTS[file]}"
        for file in dict.fromkeys(file for file, _ in planned)
    }
    for file, command in commands.items():
        outcome, output = run_tests(command, LIMIT_S)
        if outcome != TestOutcome.SURVIVED:
            say(f"the tests of {file} fail without any bug:\n{output}")
            return 1
    noticed: Counter[str] = Counter()
    for number, (file, mutant) in enumerate(planned, 1):
        began = time.monotonic()
        result = mutate_and_test([mutant], commands[file], LIMIT_S)
        if result.worker_outcome != WorkerOutcome.NORMAL:
            say(result.output or "")
            return 1
        is_noticed = result.test_outcome == TestOutcome.KILLED
        noticed[file] += is_noticed
        word = "noticed" if is_noticed else "LIVES"
        say(f"{number}/{len(planned)} {word} {file}:{mutant.start_pos[0]} ({time.monotonic() - began:.0f} s)")
        if not is_noticed:
            say(result.diff or "")
    asked = Counter(file for file, _ in planned)
    for file, count in asked.items():
        say(f"{noticed[file]:5} of {count:5} {file}")
    say(f"{noticed.total()} of {len(planned)} bugs were noticed: {noticed.total() / max(len(planned), 1):.0%}")
    return 0


def say(line: str) -> None:
    """Print a line at once: a run takes long."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
