"""Gated fusion: the sentence changes the reference's image tokens before the Q-Former reads them."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from composir.models.qformer import Affine
from composir.models.token_fusion import ALPHA_INIT, TokenFusion, alpha, feed_forward


class GatedFusion(TokenFusion):
    """``fused = x + alpha * sigmoid(W2 relu(W1 [x; t])) * tanh(V2 relu(V1 t))`` for each image token x.

    ``t`` is the mean of the sentence's token embeddings over its real (unmasked) words, [CLS] and [SEP] among them
    (without a mask: over all that are given), projected to the image
    tokens' width where the widths differ. The first product says how much each channel of each patch may change, the
    second in which direction; ``alpha`` is one learnable number. Parameters: ``5 H^2 + 4 H + 1`` at width H, and
    ``H * text_size + H`` more for the projection.

    ``W1 [x; t] = W1x x + W1t t`` and the direction depends on t alone, so both text terms are computed once a
    sample instead of once a token.

    With an ``affine`` the tokens are ``a * x + b``. The first product has it in its weights,
    ``W1x (a * x + b) = (W1x * a) x + W1x b``, so that training a and b asks for no product with the gradient of every
    token, a sixth of the gate's work.

    With ``layer_norm`` the gate reads ``LayerNorm(x)`` in x's place, ``2 H`` parameters more; what is changed stays x.
    ``t`` comes out of a layer norm anyway.
    """

    def __init__(
        self,
        hidden_size: int,
        text_size: int | None = None,
        alpha_init: float = ALPHA_INIT,
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        text_size = hidden_size if text_size is None else text_size
        self.hidden_size = hidden_size
        self.text_proj = nn.Linear(text_size, hidden_size) if text_size != hidden_size else None
        self.gate = feed_forward(hidden_size, nn.Sigmoid(), 2 * hidden_size)
        self.delta = feed_forward(hidden_size, nn.Tanh())
        self.alpha = alpha(alpha_init)
        self.norm = nn.LayerNorm(hidden_size) if layer_norm else None

    def gate_and_delta(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
        affine: Affine | None = None,
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch width"]]:
        """Return the gate in (0, 1) for every token and channel, and the sentence's direction in (-1, 1).

        ``affine`` scales and shifts the tokens first.
        """
        text = self.summarise(text_tokens, text_mask)  # (batch, width)
        first, second = cast(nn.Linear, self.gate[0]), cast(nn.Linear, self.gate[2])
        from_image, from_text = first.weight.split(self.hidden_size, dim=1)
        seen, bias = image_tokens, first.bias
        if self.norm is not None:
            seen = self.norm(image_tokens if affine is None else affine(image_tokens))
        elif affine is not None:
            from_image, bias = from_image * affine.weight, bias + (from_image * affine.bias).sum(dim=1)
        # In place: of all that is as large as the image tokens, the backward pass needs hidden and gate alone.
        hidden = nn.functional.linear(seen, from_image)  # (batch, tokens, width)
        hidden = hidden.add_(nn.functional.linear(text, from_text, bias).unsqueeze(1)).relu_()
        return second(hidden).sigmoid_(), self.delta(text)

    def forward(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
        affine: Affine | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the image tokens as the sentence changes them, same shape; ``text_mask`` is 1 for real words.

        ``affine`` scales and shifts the tokens first.
        """
        gate, delta = self.gate_and_delta(image_tokens, text_tokens, text_mask, affine)
        tokens = image_tokens if affine is None else affine(image_tokens)
        return torch.addcmul(tokens, gate, (self.alpha * delta).unsqueeze(1))

    def maps(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
        affine: Affine | None = None,
    ) -> dict[str, Float[Tensor, "batch tokens"]]:
        """Return ``gate``: how far it is open at each patch, in (0, 1), mean over the channels."""
        return {"gate": self.gate_and_delta(image_tokens, text_tokens, text_mask, affine)[0].mean(dim=-1)}
