"""The field's public models by name: ``MODELS``. What is not stated by their authors is None or "not stated"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from composir.errors import ComposirError, command
from composir.files import require_space, size_text
from composir.models.address import Options
from composir.models.config import CONFIG, HEAD, MODEL_NAME
from composir.models.dual import FEATURE_SUM, WEIGHTED_SUM, Composition, DualEncoder
from composir.models.embedder import VectorEmbedder
from composir.models.hub import cache_folder, download, repository_folder, snapshot_here
from composir.models.qwen import QwenEmbedder
from composir.models.weights.sources import HUB_FILES, read_json
from composir.tables import Table

NOT_STATED = "not stated"
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
"""What is downloaded of a repository, unless a model says otherwise: never code."""
DUAL = "dual encoder"
"""The ``kind`` of CLIP and its like."""
MAIN = "main"
"""The revision of a model whose repository could not be looked at: the newest, whatever it is."""

Load = Callable[[str, Path, "str | torch.device", Options], VectorEmbedder]


@dataclass(frozen=True, slots=True)
class Figures:
    """Published figures of composed retrieval in percent, as their authors print them; None is not stated."""

    cirr: float | None = None
    """R@1 on CIRR's test1."""
    cirr_subset: float | None = None
    """R_s@1 on CIRR's test1."""
    circo: float | None = None
    """mAP@5 on CIRCO's test."""
    fashioniq: float | None = None
    """R@10 on FashionIQ's val, the mean over its categories."""
    source: str = NOT_STATED


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A public model: where its weights are, what is known of it, and what opens it."""

    kind: str
    hub_id: str
    """"" where the weights are not on the hub; ``found_at`` then says where."""
    revision: str
    num_parameters: int
    num_bytes: int | None
    """Of the download."""
    licence: str
    languages: str
    figures: Figures = Figures()
    load: Load | None = None
    """None: the weights are made a checkpoint by ``composir convert``, or cannot be asked."""
    convert_from: str = ""
    """The form that ``convert`` calls it; "" where it does not take it, and ``note`` says why."""
    note: str = ""
    files: tuple[str, ...] = FILES
    found_at: str = ""

    @property
    def size(self) -> str:
        """The size of the download for people."""
        return NOT_STATED if self.num_bytes is None else size_text(self.num_bytes)

    def folder(self) -> Path | None:
        """Return the folder of the revision in the hub's cache, None where its weights are not all there."""
        found = snapshot_here(self.hub_id, self.revision, self.files) if self.hub_id else None
        patterns = [one for one in self.files if one.endswith(("safetensors", "bin"))]
        return found if found is not None and any(any(found.glob(one)) for one in patterns) else None


def get(name: str) -> Path:
    """Return the folder of a model's files, downloaded where they are not in the hub's cache.

    Raises ``ComposirError`` where nothing here could use them, the model is not on the hub, the hub cannot be reached,
    or the disk is too small.
    """
    model = _usable(name)
    if not model.hub_id:
        raise ComposirError(
            f"{name} is not on the hub", fix=f"download it from {model.found_at}, then {convert_command(name)}"
        )
    here = model.folder()
    if here is None:
        require_space(cache_folder(), model.num_bytes or 0, what="the weights", fix="make room, or set HF_HOME")
    return download(model.hub_id, model.revision, model.files, unreachable=copy_advice(name))


def get_own(hub_id: str) -> Path:
    """Return the folder of a checkpoint or head of composir's on the hub, downloaded where it is not in its cache.

    Raises ``ComposirError`` for any other model, before its weights are downloaded, and where the hub cannot be
    reached.
    """
    advice = f"without network, copy {repository_folder(hub_id).name} from a hub's cache to {cache_folder()}"
    config = download(hub_id, MAIN, (CONFIG,), unreachable=advice) / CONFIG
    if not config.is_file() or read_json(config).get("model") not in {MODEL_NAME, HEAD}:
        raise ComposirError(
            "is neither a checkpoint nor a head of composir's",
            file=hub_id,
            expected=f"a name of composir models, or a repository whose {CONFIG} says model = {MODEL_NAME} or {HEAD}",
            fix=f"a model of sentence-transformers needs no such step: --model st:{hub_id}",
        )
    return download(hub_id, MAIN, HUB_FILES, unreachable=advice)


def _usable(name: str) -> NamedModel:
    if MODELS[name].note:
        raise ComposirError(f"{name} is listed for its figures alone: {MODELS[name].note}")
    return MODELS[name]


def copy_advice(name: str) -> str:
    """Return what to copy where on a machine without network."""
    model = MODELS[name]
    copied = repository_folder(model.hub_id)
    files = (
        f"; or copy its files ({', '.join(model.files)}) into any folder and give {name}:FOLDER" if model.load else ""
    )
    return (
        f"where there is network, run {command('models', 'get', name)}, and copy the folder {copied.name} from the "
        f"hub's cache there to {copied.parent} here{files}"
    )


def convert_command(name: str) -> str:
    """Return the command that makes a checkpoint folder of a model without ``load``, or why there is none."""
    model = MODELS[name]
    if model.note:
        return f"none: {model.note}"
    return command("convert", "--from", model.convert_from, name if model.hub_id else "FILE", "--out", f"models/{name}")


def open_model_by_name(name: str, place: str, device: str | torch.device, options: Options) -> VectorEmbedder:
    """Return a model of the table, from the folder ``place`` or the hub's cache.

    Raises ``ComposirError`` where its files are not here, or it is one that is converted first.
    """
    model = _usable(name)
    if model.load is None:
        raise ComposirError(
            f"{name} is no model to ask as it is, but weights of {model.kind}",
            expected="the checkpoint folder that convert makes of them",
            fix=convert_command(name),
        )
    folder = Path(place) if place else model.folder()
    if folder is None:
        raise ComposirError(
            f"{name} is not on this machine",
            fix=f"{command('models', 'get', name)} ({model.size}); without network: {copy_advice(name)}",
        )
    if not folder.is_dir():
        raise ComposirError("is no folder", file=folder, expected=f"the files of {model.hub_id}")
    return model.load(name, folder, device, options)


def source_of_name(source: str) -> str:
    """Return what ``convert`` takes for a name of the table: its hub id, in the hub's cache; else ``source``."""
    model = MODELS.get(source)
    if model is None:
        return source
    if not model.convert_from:
        raise ComposirError(f"{source} is not converted: {model.note or 'it is a model as it is'}")
    if not model.hub_id:
        raise ComposirError(f"{source} is not on the hub", fix=f"download it from {model.found_at} and give the file")
    folder = model.folder()
    if folder is None:
        raise ComposirError(
            f"{source} is not on this machine", fix=f"{command('models', 'get', source)} ({model.size})"
        )
    return model.hub_id


def dual(composition: Composition) -> Load:
    """Return what opens a dual encoder of ``transformers`` with a composition."""

    def load(name: str, folder: Path, device: str | torch.device, options: Options) -> VectorEmbedder:
        options.require_only(f"the dual encoder {name}", "dtype", "batch_size")
        return DualEncoder(
            name, folder, composition=composition, device=device, dtype=options.dtype, batch_size=options.batch_size
        )

    return load


_MEGAPAIRS = "Zhou et al., ACL 2025, arXiv 2412.14475, table 1 (zero-shot)"
_SPRC = "Bai et al., ICLR 2024, arXiv 2310.05473"
_SPN = "Feng et al., ACM Multimedia 2024, arXiv 2404.11317"
_blip2 = partial(NamedModel, languages="English")
_TWO_QFORMERS = (
    "its queries have a Q-Former of their own (Qformer_query, text_proj_q: init_stage2 in BUAADreamer/SPN4CIR, "
    "blip2_qformer_cir_align_prompt.py), for which composir's model has no place"
)
_sprc = partial(
    _blip2,
    kind="SPRC",
    num_parameters=1_172_000_000,
    convert_from="sprc",
    hub_id="",
    revision="",
    num_bytes=None,
    licence=NOT_STATED,
)
_spn = partial(
    _blip2,
    kind="SPRC, 2 Q-Formers",
    num_parameters=1_360_000_000,
    note=_TWO_QFORMERS,
    hub_id="BUAADreamer/SPN4CIR",
    revision="868966b7df535305efcefad9342a9f4654b53643",
    licence="MIT",
)

# Revisions and numbers of parameters of the first five are those of mteb's table of models (embeddings-benchmark/mteb,
# mteb/models/model_implementations, at a905523d0). Sizes are those of the hub's lists of files; of SigLIP 2 and Qwen
# they are computed from the parameters.
MODELS: Table[NamedModel] = Table(
    "models",
    {
        "bge-vl-base": NamedModel(
            kind=DUAL,
            hub_id="BAAI/BGE-VL-base",
            revision="cc4c733ed997dbee4ac70ccffb911e70c9c24b93",
            num_parameters=149_620_737,
            num_bytes=299_000_000,
            licence="MIT",
            languages="English",
            figures=Figures(36.1, 71.6, 34.3, 31.9, _MEGAPAIRS),
            load=dual(FEATURE_SUM),
        ),
        "bge-vl-large": NamedModel(
            kind=DUAL,
            hub_id="BAAI/BGE-VL-large",
            revision="40fb48217f521df22a2a5bf15edd52ed1146ef05",
            num_parameters=427_616_513,
            num_bytes=855_000_000,
            licence="MIT",
            languages="English",
            figures=Figures(38.0, 73.2, 39.2, 34.6, _MEGAPAIRS),
            load=dual(FEATURE_SUM),
        ),
        "clip-vit-b-32": NamedModel(
            kind=DUAL,
            hub_id="openai/clip-vit-base-patch32",
            revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            num_parameters=151_277_313,
            num_bytes=605_000_000,
            licence="MIT (its code)",
            languages="English",
            load=dual(WEIGHTED_SUM),
            files=("*.json", "*.txt", "pytorch_model.bin"),  # this revision has no safetensors
        ),
        "siglip2-base": NamedModel(
            kind=DUAL,
            hub_id="google/siglip2-base-patch16-224",
            revision="75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
            num_parameters=375_187_970,
            num_bytes=1_540_000_000,
            licence="Apache-2.0",
            languages="many",
            load=dual(WEIGHTED_SUM),
        ),
        "qwen3-vl-embedding-2b": NamedModel(
            kind="vision-language",
            hub_id="Qwen/Qwen3-VL-Embedding-2B",
            revision="9f2f7e710d6d81056aa5c0a4f04764fec6bb7bda",
            num_parameters=2_127_532_032,
            num_bytes=4_270_000_000,
            licence="Apache-2.0",
            languages="over 30",
            load=QwenEmbedder,
        ),
        "blip2-itm-vit-g": _blip2(
            kind="BLIP-2, stage 1",
            num_parameters=1_172_000_000,
            hub_id="Salesforce/blip2-itm-vit-g",
            revision=MAIN,
            num_bytes=4_690_000_000,
            licence="see its page",
            convert_from="hf",
        ),
        "sprc-cirr": _sprc(
            figures=Figures(51.96, 80.65, source=_SPRC),
            found_at="the link sprc_cirr.pt in the README of github.com/chunmeifeng/SPRC",
        ),
        "sprc-fashioniq": _sprc(
            figures=Figures(
                fashioniq=54.72, source=f"{_SPRC}; its table prints 54.92, which its categories do not give"
            ),
            found_at="the link sprc_fiq.pt in the README of github.com/chunmeifeng/SPRC",
        ),
        "sprc-spn-cirr": _spn(
            num_bytes=3_470_000_000,
            figures=Figures(55.06, 81.54, source=_SPN),
        ),
        "sprc-spn-fashioniq": _spn(
            num_bytes=None,
            figures=Figures(fashioniq=56.37, source=_SPN),
        ),
    },
)
