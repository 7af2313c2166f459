"""Search in one's own pictures: an index folder, its engines, and the retriever over them."""

from composir.data.images.files import content_id
from composir.paths import MANIFEST
from composir.search.embedding import Noted, Skipped
from composir.search.folder import ENGINES, IndexReport, index_folder
from composir.search.index import Index
from composir.search.manifest import INDEXES, Manifest, check_backend, read_manifest
from composir.search.merging import merge_vectors
from composir.search.query import NothingAskedError, NotInIndexError, SearchQuery, Sentence
from composir.search.rerank import Reranker, load_reranker
from composir.search.retriever import Hit, Images, Retriever
from composir.search.table import Table

__all__ = [
    "ENGINES",
    "INDEXES",
    "MANIFEST",
    "Hit",
    "Images",
    "Index",
    "IndexReport",
    "Manifest",
    "NotInIndexError",
    "Noted",
    "NothingAskedError",
    "Reranker",
    "Retriever",
    "SearchQuery",
    "Sentence",
    "Skipped",
    "Table",
    "check_backend",
    "content_id",
    "index_folder",
    "load_reranker",
    "merge_vectors",
    "read_manifest",
]
