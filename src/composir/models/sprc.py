"""SPRC's model on image tokens and word ids: four passes through one Q-Former, fusions, losses.

The arithmetic is SPRC's (Bai et al., ICLR 2024) on BLIP-2's Q-Former (``qformer.py``). Axis words: batch, tokens
(image patches), queries (Q-Former), words, width (of an image token), hidden (of the Q-Former), dim (of an embedding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from composir.losses import ContrastiveLoss, Outputs, alignment_loss, contrastive_loss, term_losses
from composir.machine import to_device
from composir.models.config import ComposerConfig
from composir.models.fusion import FUSIONS, GATE, fusion_names
from composir.models.gated_fusion import GatedFusion
from composir.models.qformer import INITIALIZER_RANGE, PADDING_ID, Affine, QFormer, TextEmbeddings
from composir.models.randomness import random_numbers_aside
from composir.models.token_fusion import MASKED, TokenFusion
from composir.parallel import gather
from composir.scoring import similarity

GLOBAL, LOCAL, BOTH = "global", "local", "both"
SCORINGS = (GLOBAL, LOCAL, BOTH)
"""How a query can be scored: by its one embedding, part by part, or by both."""


class Sprc(nn.Module):
    """SPRC (``blip2_cir_align_prompt``) on the frozen tower's image tokens, with fusions where they are on.

    Pass 1, ``fuse``: the queries read the reference with the sentence. Pass 2, ``compose``: the sentence is read behind
    them; at its [CLS] is the query. Pass 3, ``look``: the queries read a candidate. Pass 4, ``encode_prompt``: the
    sentence is read behind learned tokens, which training holds close to what pass 1 gives.
    """

    def __init__(self, config: ComposerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_embeddings = TextEmbeddings(config)
        self.qformer = QFormer(config, config.hidden_size if config.num_adapted_tokens else config.token_width)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.hidden_size))
        self.prompt_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.hidden_size))
        self.vision_proj = nn.Linear(config.hidden_size, config.embed_dim)
        self.text_proj = nn.Linear(config.hidden_size, config.embed_dim)
        self.itm_head = nn.Linear(config.hidden_size, 2)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init)))
        self.ln_vision = Affine(config.token_width) if config.ln_vision else None
        self.standardise = Standardise(config.token_width) if config.num_adapted_tokens else None
        self.adapter = (
            TokenAdapter(config.num_adapted_tokens, config.token_width, config.hidden_size)
            if config.num_adapted_tokens
            else None
        )
        nn.init.normal_(self.query_tokens, std=INITIALIZER_RANGE)
        nn.init.normal_(self.prompt_tokens, std=INITIALIZER_RANGE)
        for embedding in (self.text_embeddings.word_embeddings, self.text_embeddings.position_embeddings):
            nn.init.normal_(embedding.weight, std=INITIALIZER_RANGE)
        self.gated_fusion: GatedFusion | None = None
        self.fusions = nn.ModuleDict()
        # In a fork of the generator: all else starts the same from one seed whatever the fusion.
        with random_numbers_aside():
            for name in fusion_names(config.fusion):
                module = FUSIONS[name].make(config)
                if isinstance(module, GatedFusion):
                    self.gated_fusion = module
                else:
                    self.fusions[name] = module

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.query_tokens.device

    def own_weights(self) -> dict[str, Tensor]:
        """Return all weights but the frozen tower's, by name: what a checkpoint holds."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("tower.")}

    def load_own_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over all weights but the tower's; a name too many or too few raises ``RuntimeError``."""
        tower = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("tower.")}
        self.load_state_dict({**weights, **tower}, strict=True)

    # -- the four passes -------------------------------------------------------------------------------------------

    def _adapt(self, image_tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens hidden"]:
        return image_tokens if self.adapter is None else self.adapter(image_tokens)

    def _normalised(self, image_tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        tokens = image_tokens.to(self.query_tokens.dtype)
        return tokens if self.standardise is None else self.standardise(tokens)

    def _fusions_at(self, place: str) -> list[nn.Module]:
        """Return the modules that act there, the gate first."""
        modules = {GATE: self.gated_fusion, **self.fusions}
        return [module for name, module in modules.items() if module is not None and FUSIONS[name].place == place]

    def start_fusions_as_identity(self) -> None:
        """Let the gate and the attention start without an effect, where the model has them."""
        for module in self._fusions_at("tokens"):
            cast(TokenFusion, module).start_as_identity()

    def fuse(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, "batch queries hidden"]:
        """Return the queries after reading the reference and the sentence together (pass 1)."""
        return self._fuse(image_tokens, self.text_embeddings(input_ids), attention_mask)

    def _fuse(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text: Float[Tensor, "batch words hidden"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, "batch queries hidden"]:
        tokens, affine = self._normalised(image_tokens), self.ln_vision
        for fuse in self._fusions_at("tokens"):
            words = self._pooled_words(text, attention_mask)
            if isinstance(fuse, GatedFusion):  # the first, if it is there: it scales and shifts the tokens itself
                tokens = fuse(tokens, *words, affine)
            else:
                tokens = fuse(tokens if affine is None else affine(tokens), *words)
            affine = None
        queries = slice(self.config.num_query_tokens)
        return self.qformer(self.query_tokens, text, attention_mask, self._adapt(tokens), affine, at=queries)

    def _pooled_words(
        self, text: Float[Tensor, "batch words hidden"], attention_mask: Int[Tensor, "batch words"]
    ) -> tuple[Float[Tensor, "batch pooled hidden"], Int[Tensor, "batch pooled"] | None]:
        """Return what fusions of tokens take the mean of, normalised, with its mask: see ``gate_pooling``."""
        if self.config.gate_pooling == MASKED:
            return self.qformer.layernorm(text), attention_mask
        places = self.text_embeddings.position_embeddings.weight[text.shape[1] : self.config.max_words]
        padding = self.text_embeddings.word_embeddings.weight[PADDING_ID].detach() + places
        return self.qformer.layernorm(torch.cat([text, padding.expand(len(text), -1, -1)], dim=1)), None

    def compose(
        self,
        fused_queries: Float[Tensor, "batch queries hidden"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the query embedding: the sentence read behind the fused queries, at its [CLS] (pass 2)."""
        return _embed(self.text_proj, self.answer(fused_queries, input_ids, attention_mask))

    def answer(
        self,
        fused_queries: Float[Tensor, "batch queries hidden"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, "batch hidden"]:
        """Return the hidden state at [CLS] of the sentence behind the fused queries."""
        return self._sentence(fused_queries, self.text_embeddings(input_ids), attention_mask, num_words=1)[:, 0]

    def _sentence(
        self,
        queries: Float[Tensor, "batch queries hidden"],
        text: Float[Tensor, "batch words hidden"],
        attention_mask: Int[Tensor, "batch words"],
        *,
        num_words: int,
    ) -> Float[Tensor, "batch read hidden"]:
        """Return the hidden states of the first words behind queries, no picture read; [CLS] is the first of them."""
        cls = self.config.num_query_tokens
        return self.qformer(queries, text, attention_mask, at=slice(cls, cls + num_words))

    def _parts(
        self,
        fused_queries: Float[Tensor, "batch queries hidden"],
        words: Float[Tensor, "batch words hidden"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, "batch parts dim"]:
        """Return the vectors of the local score: each fused query and each word but [CLS], weights in their length.

        Queries and words weigh a half each, alike among themselves, so that the score is a mean; padding is zero.
        """
        queries = _embed(self.text_proj, fused_queries) / fused_queries.shape[1]
        spoken = _embed(self.text_proj, words[:, 1:])
        counts = to_device(attention_mask[:, 1:, None], words.device).to(spoken.dtype)  # (batch, words - 1, 1)
        spoken = spoken * counts / counts.sum(dim=1, keepdim=True)
        return torch.cat([queries, spoken], dim=1) / 2

    def encode_query_parts(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
        *,
        scoring: str,
    ) -> Float[Tensor, "batch parts dim"]:
        """Return the vectors of each query that ``similarity`` adds up, for ``scoring`` ``local`` or ``both``.

        ``local``: every fused query and word looks for the target's vector that fits it best, and the mean counts
        (late interaction). ``both``: the mean of that and of the one query embedding's score (``global``). There are
        always as many parts as the longest sentence would have, those beyond this one's being zero.
        """
        fused = self.fuse(image_tokens, input_ids, attention_mask)
        text = self.text_embeddings(input_ids)
        words = self._sentence(fused, text, attention_mask, num_words=input_ids.shape[1])
        parts = self._parts(fused, words, attention_mask)
        padding = self.config.num_query_tokens + self.config.max_words - 1 - parts.shape[1]
        parts = nn.functional.pad(parts, (0, 0, 0, padding))
        if scoring == LOCAL:
            return parts
        query = _embed(self.text_proj, words[:, 0])
        if self.joins_targets:
            prompt = self.encode_prompt(input_ids, attention_mask)
            query = self._join(query, self.encode_target(image_tokens), prompt)
        return torch.cat([query[:, None], parts], dim=1) / 2

    def encode_query(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
        targets: Float[Tensor, "batch queries dim"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Return the L2-normalised embedding of each reference (its tower tokens) with its sentence.

        ``targets`` are the references' own vectors (``encode_target``), where they are there already; a model that
        does not join them (``joins_targets``) does without.
        """
        if not self.joins_targets:
            return self.compose(self.fuse(image_tokens, input_ids, attention_mask), input_ids, attention_mask)
        words = self.text_embeddings.word_embeddings(input_ids)  # (batch, words, hidden)
        text = words + self.text_embeddings.position_embeddings.weight[: input_ids.shape[1]]
        fused = self._fuse(image_tokens, text, attention_mask)
        states = self._answers_and_prompts(fused, words, text, attention_mask, num_words=1)
        query, prompt = (_embed(self.text_proj, one[:, 0]) for one in states)
        return self._join(query, self.encode_target(image_tokens) if targets is None else targets, prompt)

    @property
    def joins_targets(self) -> bool:
        """Whether a fusion joins the query with the reference's vectors as a target."""
        return bool(self._fusions_at("query"))

    def _join(
        self,
        query: Float[Tensor, "batch dim"],
        targets: Float[Tensor, "batch queries dim"],
        sentence: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the query after the fusions that act on it; the reference is the mean of its vectors as a target."""
        reference = nn.functional.normalize(targets.mean(dim=1), dim=-1)
        for fuse in self._fusions_at("query"):
            query = nn.functional.normalize(fuse(query, reference, sentence), dim=-1)
        return query

    def encode_target(self, image_tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch queries dim"]:
        """Return the L2-normalised vectors of each picture, one a query token (pass 3)."""
        return _embed(self.vision_proj, self.look(image_tokens))

    def look(self, image_tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch queries hidden"]:
        """Return the queries after reading a picture alone."""
        queries = self.query_tokens
        if self.training and self.config.dropout:  # else all pictures meet the same queries, made ready once
            queries = queries.expand(len(image_tokens), -1, -1)
        tokens = self._adapt(self._normalised(image_tokens))
        return self.qformer(queries, image_tokens=tokens, affine=self.ln_vision, at=slice(None))

    def encode_prompt(
        self, input_ids: Int[Tensor, "batch words"], attention_mask: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the L2-normalised embedding of the sentence behind the prompt tokens, no picture read (pass 4)."""
        prompted = self._prompted(self.text_embeddings.word_embeddings(input_ids))
        return _embed(self.text_proj, self._sentence(*prompted, attention_mask, num_words=1)[:, 0])

    def _answers_and_prompts(
        self,
        fused_queries: Float[Tensor, "batch queries hidden"],
        words: Float[Tensor, "batch words hidden"],
        text: Float[Tensor, "batch words hidden"],
        attention_mask: Int[Tensor, "batch words"],
        *,
        num_words: int,
    ) -> tuple[Float[Tensor, "batch read hidden"], Float[Tensor, "batch read hidden"]]:
        """Return the hidden states of the first words in passes 2 and 4, as one pass.

        They are as long as each other, and a batch twice as large is less than twice the work. ``text`` are the
        ``words`` with their positions.
        """
        prompt_tokens, prompted_text = self._prompted(words)
        answers, prompted = self._sentence(
            torch.cat([fused_queries, prompt_tokens]),
            torch.cat([text, prompted_text]),
            attention_mask.repeat(2, 1),
            num_words=num_words,
        ).chunk(2)
        return answers, prompted

    def _prompted(
        self, words: Float[Tensor, "batch words hidden"]
    ) -> tuple[Float[Tensor, "batch queries hidden"], Float[Tensor, "batch words hidden"]]:
        """Return the prompt tokens and the words with the positions of [CLS], prompt, rest.

        The positions say the order, so that the prompt can stand before the words, as the fused queries do.
        """
        num_prompt, num_words = self.config.num_query_tokens, words.shape[1]
        cls, prompt, rest = self.text_embeddings.position_embeddings.weight[: num_prompt + num_words].split(
            [1, num_prompt, num_words - 1]
        )
        return (self.prompt_tokens + prompt).expand(len(words), -1, -1), words + torch.cat([cls, rest])

    def match(
        self,
        pictures: Sequence[Float[Tensor, "batch tokens width"]],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, " batch"]:
        """Return how well each sentence matches the pictures it is given with, as a logit: higher is better.

        The queries read the sentence and the tokens of all ``pictures``, one behind the other, and ``itm_head``
        judges each; the logit is the mean over queries. With one picture this is BLIP-2's image-text matching; with
        the reference and a candidate, in this order, SPRC's re-ranking. The gate has no part in it.
        """
        tokens = torch.cat([self._adapt(self._normalised(picture)) for picture in pictures], dim=1)
        text, queries = self.text_embeddings(input_ids), slice(self.config.num_query_tokens)
        hidden = self.qformer(self.query_tokens, text, attention_mask, tokens, self.ln_vision, at=queries)
        return self.itm_head(hidden)[..., 1].mean(dim=1)

    def gate_values(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the gate in (0, 1) by patch and channel; a model without the gate raises ``RuntimeError``."""
        if self.gated_fusion is None:
            raise RuntimeError("this model has no gated fusion")
        words = self._pooled_words(self.text_embeddings(input_ids), attention_mask)
        return self.gated_fusion.gate_and_delta(self._normalised(image_tokens), *words, self.ln_vision)[0]

    @torch.no_grad()
    def center(
        self,
        reference_tokens: Float[Tensor, "batch tokens width"],
        target_tokens: Float[Tensor, "batch tokens width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
    ) -> None:
        """Set the heads' biases so that query and target outputs have mean zero over these triplets.

        Without it a fresh Q-Former gives all pictures nearly the same embedding, and the loss stays at the logarithm
        of the batch for a hundred steps.
        """
        fused = self.fuse(reference_tokens, input_ids, attention_mask)
        hidden = self.answer(fused, input_ids, attention_mask)
        self.text_proj.bias.sub_(self.text_proj(hidden).mean(dim=0))
        self.vision_proj.bias.sub_(self.vision_proj(self.look(target_tokens)).mean(dim=(0, 1)))

    # -- training --------------------------------------------------------------------------------------------------

    def training_losses(
        self,
        reference_tokens: Float[Tensor, "batch tokens width"],
        target_tokens: Float[Tensor, "candidates tokens width"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Int[Tensor, "batch words"],
        *,
        same_target: Bool[Tensor, "batch candidates"] | None = None,
        contrast: ContrastiveLoss = contrastive_loss,
        local: bool = False,
        terms: Sequence[str] = (),
        num_all: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Return SPRC's three losses, unweighted: ``loss_itc``, ``loss_rtc`` and ``loss_align``.

        ``target_tokens`` holds the targets in the order of the queries; further pictures behind them are negatives
        for every query. ``same_target[i, j]`` marks a candidate j that is the very image of query i's target, which
        is then no negative. With neither, the losses are the published ones. ``contrast`` takes the place of the
        contrastive loss, with ``local`` there is also ``loss_local``: that of the local score (``encode_query_parts``)
        of every query with every candidate, and ``terms`` names further ones of ``TERMS``, each ``loss_NAME``.

        Where several processes train, each gives its ``share`` of the queries and of the candidates, and ``num_all``
        says how many there are of both; the losses, and ``same_target``, are then those of all of them.
        """
        num_queries, num_candidates = num_all or (len(input_ids), len(target_tokens))
        num_words = input_ids.shape[1]
        words = self.text_embeddings.word_embeddings(input_ids)  # (batch, words, hidden)
        text = words + self.text_embeddings.position_embeddings.weight[:num_words]
        fused = self._fuse(reference_tokens, text, attention_mask)
        target = self.encode_target(target_tokens)
        read = num_words if local else 1
        answers, prompted = self._answers_and_prompts(fused, words, text, attention_mask, num_words=read)
        query, prompt = (_embed(self.text_proj, states[:, 0]) for states in (answers, prompted))
        if self.joins_targets:
            query = self._join(query, self.encode_target(reference_tokens), prompt)
        query, prompt, target = (
            gather(query, num_queries),
            gather(prompt, num_queries),
            gather(target, num_candidates),
        )
        with torch.autocast(query.device.type, enabled=False):
            logits = similarity(query, target) / self.temperature
            mean_query = fused.to(self.prompt_tokens.dtype).mean(dim=1, keepdim=True)
            losses = {
                "loss_itc": contrast(logits, same_target),
                "loss_rtc": contrast(similarity(prompt, target) / self.temperature, same_target),
                "loss_align": alignment_loss(gather(mean_query, num_queries), self.prompt_tokens),
            }
            if local:
                parts = gather(self._parts(fused, answers, attention_mask), num_queries)
                losses["loss_local"] = contrast(similarity(parts, target) / self.temperature, same_target)
            outputs = Outputs(query, prompt, target, logits, self.temperature, same_target)
            return losses | term_losses(outputs, terms)


def _embed(head: nn.Linear, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... dim"]:
    """Return the L2-normalised embeddings of hidden states, in the head's own precision also inside autocast.

    A head is a hundredth of a step's work, and what it rounds off is multiplied by one over the temperature.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.normalize(head(hidden.to(head.weight.dtype)), dim=-1)


class TokenAdapter(nn.Module):
    """Image tokens of a tower that has never met a Q-Former: projected to its width, with learned positions."""

    POSITION_STD = 0.5

    def __init__(self, num_tokens: int, token_width: int, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(token_width, hidden_size)
        self.positions = nn.Parameter(torch.randn(num_tokens, hidden_size) * self.POSITION_STD)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens hidden"]:
        """Return the tokens the Q-Former's cross-attention reads."""
        return self.norm(self.projection(tokens) + self.positions)


class Standardise(nn.Module):
    """Image tokens with each channel's mean taken off and divided by its standard deviation, as measured once."""

    mean: Tensor
    std: Tensor

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(token_width))
        self.register_buffer("std", torch.ones(token_width))

    def fit(self, tokens: Float[Tensor, "batch tokens width"]) -> None:
        """Set mean and standard deviation to those of ``tokens``, on the CPU; a constant channel keeps its scale."""
        flat = tokens.flatten(0, 1).double()
        std = flat.std(dim=0)
        self.mean.copy_(flat.mean(dim=0).float())  # in float32 already: MPS has no float64
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)).float())

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Return ``(tokens - mean) / std``."""
        return (tokens - self.mean) / self.std
