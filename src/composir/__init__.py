"""composir: composed image retrieval, from annotation to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composir.models.checkpoint import from_pretrained as load
    from composir.models.checkpoint import push_to_hub, save_pretrained
    from composir.scoring import similarity
    from composir.search import Retriever

    __version__: str

__all__ = ["Retriever", "__version__", "load", "push_to_hub", "save_pretrained", "similarity"]


def __getattr__(name: str) -> object:
    """Import torch only when a name is used: ``composir --help`` answers at once."""
    if name in {"load", "push_to_hub", "save_pretrained"}:
        from composir.models import checkpoint

        return getattr(checkpoint, "from_pretrained" if name == "load" else name)
    if name == "similarity":
        from composir.scoring import similarity

        return similarity
    if name == "Retriever":
        from composir.search import Retriever

        return Retriever
    if name == "__version__":
        from composir.version import own_version

        return own_version()
    raise AttributeError(f"module 'composir' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what there is, the names that are not imported yet among it: TAB completes them."""
    return sorted({*globals(), *__all__})
