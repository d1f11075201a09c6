"""The cross-entropy of a language model, without the logits of all tokens in memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from headway.attention.arrays import widened

LOGITS = 2**26  # maximum number of logits in memory at once


def linear_cross_entropy(
    features: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " rows"],
    *,
    smoothing: float = 0.0,
    logits_at_once: int = LOGITS,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the logits `features @ weight.T`, in nats.

    The logits are computed for some rows at a time. With gradients, each part of them gives its
    loss and its gradients before the next part is computed, so that nothing is computed twice (the
    idea: Hsu et al. 2024, "Liger Kernel"). Logits are in the dtype of the features, the loss and
    the sum of the weight's gradients in float32 or wider. First derivatives only.

    smoothing: the fraction of a target's probability that is spread over all tokens.
    """
    at_once = max(1, logits_at_once // len(weight))
    if torch.is_grad_enabled():
        loss: Tensor = _WithGradients.apply(features, weight, targets, smoothing, at_once)  # type: ignore[no-untyped-call]
        return loss
    chunks = zip(torch.split(features, at_once), torch.split(targets, at_once), strict=True)
    losses = [
        _loss(_log_probabilities(linear(rows, weight)), words, smoothing)[0]
        for rows, words in chunks
    ]
    return torch.stack(losses).sum() / len(targets)


class _WithGradients(torch.autograd.Function):
    """The mean loss; the forward pass computes its gradients, and `backward` multiplies them."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, smoothing: float, at_once: int
    ) -> Tensor:
        losses, of_features = [], []
        of_weight = torch.zeros_like(widened(weight))
        for rows, words in zip(
            torch.split(features, at_once), torch.split(targets, at_once), strict=True
        ):
            logits = linear(rows, weight)
            wide = _log_probabilities(logits)
            loss, picked = _loss(wide, words, smoothing)
            losses.append(loss)
            # The gradient of the sum of the losses: softmax(logits) - target. The number of each
            # target is computed before the rounding to 16 bits.
            uniform = smoothing / len(weight)
            at_target = (picked.exp() - (1 - smoothing) - uniform).to(logits.dtype)
            gradient = wide.exp_() - uniform if smoothing else wide.exp_()
            gradient = gradient.to(logits.dtype).scatter_(-1, words[:, None], at_target)
            of_features.append(gradient @ weight)
            of_weight += gradient.mT @ rows
        ctx.rows = len(targets)
        ctx.save_for_backward(torch.cat(of_features), of_weight.to(weight.dtype))
        return torch.stack(losses).sum() / len(targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor | None, ...]:
        scale = received / ctx.rows
        of_features, of_weight = ctx.saved_tensors
        return of_features * scale, of_weight * scale, None, None, None


def _log_probabilities(logits: Float[Tensor, "rows words"]) -> Float[Tensor, "rows words"]:
    return widened(logits).log_softmax(-1)


def _loss(
    log_probabilities: Float[Tensor, "rows words"], targets: Int[Tensor, " rows"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows 1"]]:
    """Return the sum of the losses, and the logarithm of the probability of each target."""
    picked = log_probabilities.gather(-1, targets[:, None])
    loss = -(1 - smoothing) * picked.sum()
    if smoothing:
        loss = loss - smoothing * log_probabilities.mean(-1).sum()
    return loss, picked
