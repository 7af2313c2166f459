"""Networks and tokenizers of ``transformers`` out of a folder: no code of a repository is run, nothing is made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from composir.errors import ComposirError
from composir.models.vision import TORCH_DTYPES
from composir.models.weights.sources import DOWNLOAD_AGAIN

OURS_ALONE = {"local_files_only": True, "trust_remote_code": False}
"""What ``from_pretrained`` of a tokenizer or processor is told."""


def load_network(kind: Any, folder: Path, *, dtype: str, device: Any) -> Any:
    """Return a network of a class of ``transformers`` with a folder's weights, frozen, in evaluation mode.

    ``dtype`` is a key of ``TORCH_DTYPES``. Raises ``ComposirError`` where a weight is missing or of another shape:
    ``transformers`` would start it at random.
    """
    with telling_what_fails(folder):
        network, told = kind.from_pretrained(
            folder, dtype=TORCH_DTYPES[dtype], local_files_only=True, output_loading_info=True
        )
    lacking = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
    if lacking:
        raise ComposirError(
            f"lacks {len(lacking)} weights of {kind.__name__}, such as {lacking[0]}", file=folder, fix=DOWNLOAD_AGAIN
        )
    return network.to(device).eval().requires_grad_(False)


@contextmanager
def telling_what_fails(folder: Path) -> Iterator[None]:
    """Raise ``ComposirError`` with one line where ``transformers`` cannot load what is asked for; it says nothing."""
    with quiet_transformers():
        try:
            yield
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise ComposirError(f"cannot be loaded ({reason(error)})", file=folder, fix=DOWNLOAD_AGAIN) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let ``transformers`` neither draw bars of what it loads nor report on it: what is wrong is raised."""
    from transformers.utils import logging  # noqa: PLC0415 (takes seconds)

    drew, said = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if drew:
            logging.enable_progress_bar()


def reason(error: Exception) -> str:
    """Return the first line of what an error says, its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
