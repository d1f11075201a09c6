"""The memory of a training step on one GPU by part, at the moment when it is largest.

Parameters, gradients and optimizer are float32 and, on several GPUs, sharded over all of them
(stage 3 of ZeRO, Rajbhandari et al. 2020). A GPU then also holds the gathered parameters of the
embedding, the output layer and two blocks: the one that runs and the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headway.plan.counts import FLOAT32, Work, optimizer_numbers, parameters, saved

Moment = Literal["loss", "backward pass", "update"]


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU by part, at one moment of a step.

    weights: the parameters and their copies in the number format of the computation. gradients,
    optimizer: with the temporary tensors of an update. activations: what the backward pass needs,
    and its temporary tensors. logits: the logits that are in memory at a time, and their gradients.
    """

    moment: Moment
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def memory(work: Work, gpus: int = 1) -> Memory:
    """The memory of a step, at the moment when it is largest."""
    return max(moments(work, gpus), key=lambda moment: moment.total)


def moments(work: Work, gpus: int = 1) -> list[Memory]:
    """The memory at the loss, at the first block of the backward pass, and at the update."""
    config, item, counts = work.model, work.itemsize, parameters(work.model)
    block = counts.blocks / config.layers
    table = config.vocabulary * config.width
    weights = FLOAT32 * counts.total / gpus
    if gpus > 1:
        weights += item * (counts.embedding + counts.head + min(2, config.layers) * block)
    elif item < FLOAT32:
        weights += item * counts.total
    optimizer = FLOAT32 * optimizer_numbers(config, work.muon) / gpus
    # Gradients of earlier micro-batches are not sharded: they are averaged once per step.
    earlier = FLOAT32 * counts.total if work.micro_batches > 1 else 0
    if gpus > 1:
        done = max(earlier, FLOAT32 * (counts.total / gpus + 2 * block))
    else:  # all gradients of a micro-batch exist before they are converted and added
        done = (FLOAT32 + (item if item < FLOAT32 else 0)) * counts.total
    kept = work.rows * sum(saved(config, work.tokens, item).values())
    inputs = work.tokens_at_once * config.width * item
    stored = config.layers * (inputs if work.recomputed == 1 else kept)
    stored += 2 * inputs + work.tokens_at_once * 8  # the last norm, and the tokens
    again = kept if work.recomputed == 1 else 0
    inside = (4 if config.mlp.is_gated else 2) * config.mlp_width + 2 * config.width
    of_loss = inputs + item * table  # the gradients that the loss computes in the forward pass
    backward = again + work.tokens_at_once * inside * item
    update = 3 * FLOAT32 * counts.matrices / gpus if work.muon else 0
    return [
        Memory("loss", weights, earlier, optimizer, stored, logits(work)),
        Memory("backward pass", weights, earlier, optimizer, stored + backward, of_loss),
        Memory("update", weights, done, optimizer + update, 0, 0),
    ]


def logits(work: Work) -> float:
    """The bytes of `linear_cross_entropy`, which computes some logits at a time."""
    config, item = work.model, work.itemsize
    rows = min(max(1, work.logits_at_once // config.vocabulary), work.tokens_at_once)
    wide = FLOAT32 if item < FLOAT32 else 0  # the copy of the logits in float32
    # The log-probabilities and the gradient of one part exist until those of the next one replace
    # them. In float32 both are one tensor.
    before = FLOAT32 + (item if wide else 0) if rows < work.tokens_at_once else 0
    at_softmax = rows * config.vocabulary * (item + wide + FLOAT32 + before)
    table = config.vocabulary * config.width
    at_product = rows * config.vocabulary * (item + FLOAT32 + (item if wide else 0)) + item * table
    features = work.tokens_at_once * config.width * item
    return max(at_softmax, at_product) + FLOAT32 * table + features
