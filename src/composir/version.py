"""Which composir this is, and what installs its extras."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

OF_EXTRA = re.compile(r"^(?P<requirement>[^;]+);\s*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]$")


def own_version() -> str:
    """Return the version of the installed package; ``uninstalled`` for a source tree on the path."""
    try:
        return version("composir")
    except PackageNotFoundError:
        return "uninstalled"


def pip_install(extra: str) -> str:
    """Return the command that installs the packages of one of composir's extras, from wherever composir came."""
    try:
        known = [found for line in requires("composir") or () if (found := OF_EXTRA.match(line))]
    except PackageNotFoundError:
        known = []
    packages = [f"'{one['requirement'].strip()}'" for one in known if one["extra"] == extra]
    return f"pip install {' '.join(packages) or f'-e .[{extra}]'}"
