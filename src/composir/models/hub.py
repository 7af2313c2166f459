"""Repositories of the hub in its cache on this machine, and into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.errors import ComposirError


def cache_folder() -> Path:
    """Return the folder of the hub's cache (``$HF_HUB_CACHE``, ``$HF_HOME/hub``)."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE)


def repository_folder(hub_id: str) -> Path:
    """Return the folder of a repository in the hub's cache; on another machine it is copied as it is."""
    return cache_folder() / f"models--{hub_id.replace('/', '--')}"


def snapshot_here(hub_id: str, revision: str | None = None, files: Sequence[str] | None = None) -> Path | None:
    """Return the folder of a revision in the hub's cache, None where files that fit the patterns are known to lack.

    Nothing is downloaded.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                cache_dir=cache_folder(),
                local_files_only=True,
                allow_patterns=None if files is None else list(files),
            )
        )
    except (OSError, HFValidationError):
        return None


def download(hub_id: str, revision: str, files: Sequence[str], *, unreachable: str) -> Path:
    """Return the folder of a revision, with the files that fit the patterns; what is there already is kept.

    A download that breaks off goes on where it ended; one that was stopped keeps its whole files. Raises
    ``ComposirError``; ``unreachable`` is its advice where the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id, revision=revision, cache_dir=cache_folder(), allow_patterns=list(files)))
    except Exception as error:
        answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(answer, HfHubHTTPError) and answer.response is not None:
            status = answer.response.status_code
            raise ComposirError(
                f"the hub answers {status} for revision {revision}",
                file=hub_id,
                fix="behind a login: hf auth login; else the repository or the revision is gone",
            ) from error
        if not isinstance(error, (OSError, RuntimeError)) and not _is_of_network(error):
            raise
        reason = str(answer or error).strip().splitlines()
        raise ComposirError(
            f"could not be downloaded ({reason[0] if reason else type(error).__name__})", file=hub_id, fix=unreachable
        ) from error


def _is_of_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "requests"}
