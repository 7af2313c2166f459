"""Training a CLIP-like model by adapters: both of its towers, on triplets.

LoRA (Hu et al., arXiv 2106.09685) by the package ``peft``; where the adapters are is as in CLIP-LoRA (Zanella and Ben
Ayed, arXiv 2405.18541), and the last of the four projections of each attention beside.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from composir import parallel
from composir.data.check import check_images
from composir.data.images import ImageSource, read_image
from composir.errors import ComposirError, ProblemsError
from composir.evaluation import Embedder
from composir.losses import ContrastiveLoss, Outputs, contrastive_loss, term_losses
from composir.machine import to_device
from composir.models.address import Options
from composir.models.catalogue import DUAL, MODELS
from composir.models.config import WEIGHTS
from composir.models.dual import DualEncoder
from composir.models.named import find_address, open_named
from composir.models.tuned import TunedConfig, is_tuned, open_tuned, save_tuned, tuned_hash
from composir.models.weights.sources import open_safetensors
from composir.models.weights.tensors import write_safetensors
from composir.parallel import gather
from composir.scoring import similarity
from composir.token_cache import TokenPlace
from composir.training.batches import Drawing, Drawn
from composir.training.log import NUM_PROBE_TRIPLETS, Log
from composir.training.loop import Run
from composir.training.optimizer import TEMPERATURE_RANGE
from composir.training.state import LAST_MODEL, State
from composir.version import pip_install

ADAPTED = r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
"""The layers with an adapter, by name: those of every attention in the layers of both towers."""
TRAINED_IN = "fp32"
"""What weights are kept in; a recipe's ``mixed_precision`` is what they are computed in."""
BASE_HASH = "base_hash"


class LoraInputs(NamedTuple):
    """A batch as ``LoraDual.training_losses`` takes it."""

    reference: UInt8[Tensor, "batch 3 height width"]
    target: UInt8[Tensor, "candidates 3 height width"]
    tokens: dict[str, Int[Tensor, "batch words"]]
    spoken: Bool[Tensor, " batch"]
    """Whether there is a sentence."""
    same_target: Bool[Tensor, "batch candidates"] | None
    num_all: tuple[int, int]
    """Queries and candidates of all processes."""

    def to(self, device: torch.device) -> LoraInputs:
        """Return the inputs on a device."""
        reference, target, spoken = (to_device(one, device) for one in (self.reference, self.target, self.spoken))
        tokens = {name: to_device(ids, device) for name, ids in self.tokens.items()}
        same_target = None if self.same_target is None else to_device(self.same_target, device)
        return LoraInputs(reference, target, tokens, spoken, same_target, self.num_all)


class LoraDual(nn.Module):
    """A dual encoder with adapters of a rank in it, which change nothing before the first step.

    Each adapted weight is ``W + B A``: A starts at random, B at zero. The temperature starts as the model's own, within
    ``TEMPERATURE_RANGE``, and is learned.
    """

    def __init__(self, dual: DualEncoder, rank: int) -> None:
        super().__init__()
        peft = _peft()
        self.dual = dual
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED)
        with warnings.catch_warnings():  # peft asks for a name that transformers is about to drop
            warnings.simplefilter("ignore", FutureWarning)
            self.adapted = peft.get_peft_model(dual.network, config)  # in place
        own = 1 / dual.network.logit_scale.detach().exp().float()
        self.temperature = nn.Parameter(own.clamp(*TEMPERATURE_RANGE))

    def own_weights(self) -> dict[str, Tensor]:
        """Return the weights that are trained."""
        return {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def load_own_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over all that ``own_weights`` names."""
        for name, weight in self.own_weights().items():
            weight.copy_(weights[name])

    def merged(self) -> Any:
        """Return a copy of the network, the adapters added to its weights."""
        return copy.deepcopy(self.adapted).merge_and_unload()

    def queries(
        self,
        reference: UInt8[Tensor, "batch 3 height width"],
        tokens: Mapping[str, Int[Tensor, "batch words"]],
        spoken: Bool[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Return the queries as the model composes them, and the sentences alone, L2-normalised."""
        image, text = self.dual.features_of_pixels(reference), self.dual.features_of_tokens(tokens)
        alone = nn.functional.normalize(image, dim=-1)
        query = torch.where(spoken[:, None], self.dual.composition(image, text), alone)
        return query, nn.functional.normalize(text, dim=-1)

    def training_losses(
        self,
        reference: UInt8[Tensor, "batch 3 height width"],
        target: UInt8[Tensor, "candidates 3 height width"],
        tokens: Mapping[str, Int[Tensor, "batch words"]],
        spoken: Bool[Tensor, " batch"],
        *,
        same_target: Bool[Tensor, "batch candidates"] | None = None,
        contrast: ContrastiveLoss = contrastive_loss,
        local: bool = False,
        terms: Sequence[str] = (),
        num_all: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``loss_itc``, and of ``terms`` each ``loss_NAME``; the arguments are those of ``Composer``'s.

        One vector a picture has no parts for a ``local`` score.
        """
        num_queries, num_candidates = num_all or (len(reference), len(target))
        query, sentence = (gather(one, num_queries) for one in self.queries(reference, tokens, spoken))
        features = nn.functional.normalize(self.dual.features_of_pixels(target), dim=-1)
        candidates = gather(features, num_candidates).unsqueeze(1)
        logits = similarity(query, candidates) / self.temperature
        outputs = Outputs(query, sentence, candidates, logits, self.temperature, same_target)
        return {"loss_itc": contrast(logits, same_target)} | term_losses(outputs, terms)


class LoraBatches(Drawn[LoraInputs]):
    """Batches of prepared pictures and words."""

    def __init__(self, run: LoraRun) -> None:
        super().__init__(run.recipe, run.train_splits, run.accelerator.device)
        self.dual = run.dual

    def read_all(self, drawn: Drawing) -> LoraInputs:
        """Return the pixels of the pictures and the ids of the words."""
        return LoraInputs(
            self._pixels(drawn.references),
            self._pixels(drawn.candidates),
            {name: drawn.share(ids) for name, ids in self.dual.tokenize(drawn.texts).items()},
            drawn.share(torch.tensor([bool(text) for text in drawn.texts])),
            drawn.same_target,
            drawn.num_all,
        )

    def _pixels(self, paths: Sequence[ImageSource]) -> UInt8[Tensor, "batch 3 height width"]:
        with ThreadPoolExecutor(max(1, self.recipe.num_workers)) as pool:
            prepared = pool.map(lambda path: self.dual.prepare(read_image(path)), paths)
            return torch.from_numpy(np.stack(list(prepared)))


class LoraLog(Log):
    """The log of adapters: how far they move the queries of the first training triplets."""

    def __init__(self, run: Path, model: LoraDual, batches: LoraBatches, *, first_step: int) -> None:
        super().__init__(run, first_step=first_step)
        self.model, self.batches = model, batches

    @torch.no_grad()
    def gate_figures(self) -> dict[str, float]:
        """Return the mean distance of the queries from the base's own, both of length 1."""
        self.model.eval()
        inputs = self.batches.inputs(self.batches.triplets[:NUM_PROBE_TRIPLETS], None)
        asked = inputs.reference, inputs.tokens, inputs.spoken
        changed, _ = self.model.queries(*asked)
        with self.model.adapted.disable_adapter():
            own, _ = self.model.queries(*asked)
        return {"relative_change": (changed - own).norm(dim=-1).mean().item()}

    def show(self, state: State) -> None:
        """Add nothing: of adapters there is nothing to be drawn."""


class LoraRun(Run):
    """The run of adapters: its ``last/`` holds them alone, its ``best/`` the whole model that they make."""

    def make(self, place: TokenPlace) -> None:
        """Open the model and put adapters in; ``place`` is for image tokens, of which there are none."""
        _peft()
        self.dual = open_dual(self.recipe.backbone, self.accelerator.device)
        self.config = TunedConfig.of(self.dual)
        torch.manual_seed(self.recipe.seed)  # loading may have used up random numbers
        self.model = LoraDual(self.dual, self.recipe.lora).to(self.accelerator.device)
        self.batches = LoraBatches(self)

    def fill(self, share: tuple[int, int] = (0, 1)) -> None:
        """Decode every picture once, in the first process, so that a broken one is told before the first step."""
        if self.is_first and share[1] == parallel.num_processes():
            problems = check_images([*self.train_splits, *self.val_splits])
            if problems:
                raise ProblemsError(problems)

    def take_largest_batch(self) -> None:
        """Raise ``ComposirError``: what a batch takes is not measured here."""
        raise ComposirError(
            "what a batch of a CLIP-like model takes is not measured",
            expected="a number",
            fix="--batch-size 64, say, or leave it out",
        )

    def require_room(self) -> None:
        """Take it that there is room: too little memory is told when it happens."""

    def prepare(self) -> None:
        """Change nothing: the model starts as it is."""

    def embedder(self) -> Embedder:
        """Return the model that would be saved, in the precision in which it would be asked on this device."""
        is_gpu = self.accelerator.device.type == "cuda"
        return self.dual.with_network(self.model.merged().to(torch.float16 if is_gpu else torch.float32))

    def weights_hash(self) -> str:
        """Return what identifies the model that would be saved."""
        return self.dual.hash_of(tuned_hash(self.model.merged().state_dict(), self.config))

    def save_model(self, folder: Path, about: str, files: Mapping[str, bytes]) -> None:
        """Write the whole model."""
        weights = self.model.merged().state_dict()
        save_tuned(self.dual, weights, self.config, folder, about=about, extra_files=files)

    def make_log(self) -> Log:
        """Return what writes the run down."""
        return LoraLog(self.run, self.model, self.batches, first_step=self.state.step)

    def _save_last_model(self, folder: Path) -> None:
        folder.mkdir()
        write_safetensors(self.model.own_weights(), folder / WEIGHTS, {BASE_HASH: self.config.base_hash})

    def _load(self) -> State:
        """Return where the run stood; raise ``ComposirError`` where the model is no longer the one it began with."""
        _, metadata = open_safetensors(self.run / LAST_MODEL / WEIGHTS)
        if metadata.get(BASE_HASH) != self.config.base_hash:
            raise ComposirError(
                f"{self.recipe.backbone} was {metadata.get(BASE_HASH)}, and now it is {self.config.base_hash}",
                file=self.run,
                expected="the same weights that the run began with",
                fix="put them back, or start anew without --resume",
            )
        return super()._load()

    @property
    def alpha(self) -> None:
        """No scalar: a gate has one."""
        return None


def open_dual(model: str, device: torch.device) -> DualEncoder:
    """Return a CLIP-like model in float32; raise ``ComposirError`` for any other, before it is loaded."""
    address, opened = find_address(model), None
    if address is None and is_tuned(model):
        opened = open_tuned(model, device, dtype=TRAINED_IN)
    if address is not None and address.name in MODELS and MODELS[address.name].kind == DUAL:
        opened = open_named(str(address.with_options(Options(dtype=TRAINED_IN))), device)
    if not isinstance(opened, DualEncoder):
        names = [name for name, one in MODELS.items() if one.kind == DUAL]
        raise ComposirError(
            f"--lora is for CLIP-like models, and {model} is none",
            expected=f"{', '.join(names)}, NAME:FOLDER with one of these, or what --lora has made of one",
            fix="leave --lora out to train a head",
        )
    return opened


def _peft() -> Any:
    """Return the package ``peft``; raise ``ComposirError`` where it is not installed."""
    try:
        import peft  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ComposirError(
            f"--lora needs the package peft, which cannot be imported ({error})", fix=pip_install("lora")
        ) from error
    return peft
