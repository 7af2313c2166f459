"""A head: what is trained on the vectors of a model that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composir.losses import ContrastiveLoss, Outputs, contrastive_loss, term_losses
from composir.models.config import TEMPERATURE_INIT
from composir.models.heads.change import Change
from composir.models.heads.target_map import TargetMap
from composir.models.vision import hash_weights
from composir.parallel import gather
from composir.scoring import similarity

BALANCE_RATE = 30.0
"""How much faster than other weights the balance is learned: its few numbers have further to go."""


class Head(nn.Module):
    """``c + a x - b c + change(x, t)`` at the length of c: what a frozen base composes, and what was learned about it.

    ``c`` is the base's own query of picture and sentence, ``x`` the mean of the picture's vectors at length 1, ``t``
    the sentence's vector. The balance of a and b, a number each for every channel, is how much of x takes the place
    of c. All of it starts at zero, which leaves c bit for bit. The temperature is learned, as in SPRC. With a
    ``target_map`` the vectors of targets are changed, too, those of references not.
    """

    def __init__(self, change: Change, dim: int, *, target_map: bool = False) -> None:
        super().__init__()
        self.change = change
        self.balance = nn.Parameter(torch.zeros(2, dim))
        self.target_map = TargetMap(dim) if target_map else None
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE_INIT))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.temperature.device

    def own_weights(self) -> dict[str, Tensor]:
        """Return all weights: there are no others."""
        return self.state_dict()

    def load_own_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over all weights; a name too many or too few raises ``RuntimeError``."""
        self.load_state_dict(dict(weights), strict=True)

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch vectors dim"],
        sentence: Float[Tensor, "batch text_dim"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the L2-normalised query; one of zeros, which asks for nothing, stays."""
        own = mean_vector(reference)
        more, less = BALANCE_RATE * self.balance
        changed = query + (more * own - less * query + self.change(own, sentence))
        length, wanted = (one.norm(dim=-1, keepdim=True) for one in (changed, query))
        return changed * (wanted / length.clamp(min=torch.finfo(length.dtype).tiny))

    def map_targets(self, targets: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the base's vectors of targets as queries are compared with them: as they are without a map."""
        return targets if self.target_map is None else self.target_map(targets)

    def training_losses(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch vectors dim"],
        sentence: Float[Tensor, "batch text_dim"],
        target: Float[Tensor, "candidates vectors dim"],
        *,
        same_target: Bool[Tensor, "batch candidates"] | None = None,
        contrast: ContrastiveLoss = contrastive_loss,
        local: bool = False,
        terms: Sequence[str] = (),
        num_all: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Return ``loss_itc``, and of ``terms`` each ``loss_NAME``; the arguments are those of ``Composer``'s.

        A head has no pass for the sentence alone: ``Outputs.prompt`` is the base's own query. Nor has it parts for a
        ``local`` score.
        """
        num_queries, num_candidates = num_all or (len(query), len(target))
        changed = gather(self(query, reference, sentence), num_queries)
        query, target = gather(query, num_queries), gather(self.map_targets(target), num_candidates)
        logits = similarity(changed, target) / self.temperature
        outputs = Outputs(changed, query, target, logits, self.temperature, same_target)
        return {"loss_itc": contrast(logits, same_target)} | term_losses(outputs, terms)


def mean_vector(vectors: Float[Tensor, "batch vectors dim"]) -> Float[Tensor, "batch dim"]:
    """Return the mean of each picture's vectors at length 1; the vector itself where there is one."""
    if vectors.shape[1] == 1:
        return vectors[:, 0]
    return nn.functional.normalize(vectors.mean(dim=1), dim=-1)


def head_hash(head: Head, base_hash: str) -> str:
    """Return what identifies a head: its weights, and those of the base below it."""
    weights = head.own_weights()
    weights["#base"] = torch.frombuffer(bytearray(base_hash.encode()), dtype=torch.uint8)
    return f"head-{hash_weights(weights)}"
