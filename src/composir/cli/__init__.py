"""The command line: the only place that prints. Figures go to stdout, progress and logs to stderr."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from composir.cli.common import INTERRUPTED, USER_ERROR, app
from composir.cli.console import err, one_line, printable
from composir.cli.published import INSTEAD
from composir.errors import ComposirError, ProblemsError, counted, nearest

LONG_NUMBER = re.compile(r"\d{40,}")
GROUPS = ([], ["data"], ["benchmark"])
"""What asks for nothing but what there is to ask for."""
SHOW_WARNING = warnings.showwarning
MAX_PROBLEMS_PRINTED = 100
"""On stderr, where a command stops at them; `data check` prints all."""

for _module in (
    "start",
    "search",
    "serve",
    "train",
    "ablate",
    "features",
    "evaluate",
    "bench",
    "models",
    "catalogue",
    "figures",
    "data",
    "benchmark",
):  # as --help lists them
    import_module(f"composir.cli.{_module}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line and exit code 2, ``--debug`` shows where it came from."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in GROUPS:
        arguments.append("--help")
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    _print_any_name()
    if not debug:
        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every run that was resumed
        _name_pictures_in_warnings()
    code = USER_ERROR
    try:
        _meet_other_processes(arguments)
        code = app(arguments, prog_name="composir", standalone_mode=False) or 0
    except (typer.Exit, SystemExit) as stop:
        code = getattr(stop, "exit_code", getattr(stop, "code", 0)) or 0
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted")
        code = INTERRUPTED
    except ComposirError as error:
        if debug:
            raise
        _print_error(_summary(error))
    except OSError as error:  # a path that cannot be written, a full disk
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        fix = "check the path, its permissions and the space on its disk; --debug shows where it happened"
        _print_error(f"{place}{error.strerror or error}; fix: {fix}")
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        _print_error(_usage_error(error, arguments))
    sys.exit(code)


def _print_any_name() -> None:
    """Have names of files printed that hold bytes which are no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _name_pictures_in_warnings() -> None:
    """Have what Pillow warns of, such as damaged EXIF data, say of which picture; each is told once a picture."""
    warnings.filterwarnings("always", module=r"PIL\.")
    # Pillow warns of pictures from 89 million pixels on and refuses them from twice that; a refusal is reported.
    warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any) -> None:
        from composir.data.images.decoding import being_read

        if Path(filename).parent.name == "PIL" and being_read():
            err.print(f"note: {printable(being_read())}: {' '.join(str(message).split())}", soft_wrap=True)
        else:
            SHOW_WARNING(message, category, filename, *more)

    warnings.showwarning = show


def _meet_other_processes(arguments: Sequence[str]) -> None:
    """Let only the first of several processes speak; raise ``ComposirError`` where there can be but one."""
    if int(os.environ.get("RANK", "0")):
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        err.quiet = True
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number > 1 and arguments[:1] != ["train"]:
        raise ComposirError(
            f"composir {' '.join(arguments[:1])} was started as {number} processes",
            expected="one; only composir train works as several",
            fix="start it without accelerate launch and torchrun",
        )


def _usage_error(error: Any, arguments: list[str]) -> str:
    """Return one line for a mistake in the flags, with the value and the nearest flag or command that exists."""
    message = str(error.format_message())
    parameter = getattr(error, "param", None)
    low, high = (_limit(parameter, end) for end in ("min", "max"))
    if parameter is not None and low is not None and high is not None:
        message = f"{parameter.opts[0]}: expected a number from {low:,} to {high:,}"
    flag = next((flag for flag in getattr(parameter, "opts", []) if flag in arguments[:-1]), None)
    if flag:
        message += f" (got {arguments[arguments.index(flag) + 1]!r})"
    option = getattr(error, "option_name", None)
    command = getattr(error.ctx, "command", None) if error.ctx else None
    instead = INSTEAD.get(str(getattr(command, "name", "")), {}).get(str(option))
    if instead:
        return f"{option} is a flag of the published scripts; fix: {instead}"
    if option and command is not None and not getattr(error, "possibilities", None):
        known = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        message += f" ({nearest(option, known)})"
    return LONG_NUMBER.sub(lambda digits: f"{digits[0][:20]}... ({len(digits[0]):,} digits)", message)


def _limit(parameter: Any, end: str) -> float | None:
    """Return an end of the range of a parameter, which Typer keeps in one of two places by its version."""
    own = getattr(parameter, end, None)
    return own if own is not None else getattr(getattr(parameter, "type", None), end, None)


def _print_error(message: str) -> None:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    err.print(f"error: {line}", style="red", soft_wrap=True)


def _summary(error: ComposirError) -> str:
    """Return the error as one line, after printing its problems, one a line, where there are several."""
    if not isinstance(error, ProblemsError) or len(error.problems) == 1:
        return str(error)
    for problem in error.problems[:MAX_PROBLEMS_PRINTED]:
        err.print(one_line(problem), soft_wrap=True)
    rest = len(error.problems) - MAX_PROBLEMS_PRINTED
    if rest > 0:
        err.print(f"... and {rest:,} more")
    files = list(dict.fromkeys(problem.file for problem in error.problems))
    place = files[0] if len(files) == 1 else counted(len(files), "file")
    return f"{counted(len(error.problems), 'problem')} in {place}, see above"
