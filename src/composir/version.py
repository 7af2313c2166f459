"""Which composir this is."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Return the version of the installed package; ``uninstalled`` for a source tree on the path."""
    try:
        return version("composir")
    except PackageNotFoundError:
        return "uninstalled"
