"""The memory of a training step on one GPU by part, at the moment when it is largest.

Parameters, gradients and optimizer are float32 and, on several GPUs, sharded over all of them
(stage 3 of ZeRO, Rajbhandari et al. 2020). A GPU then also holds the gathered parameters of the
embedding, the output layer and two blocks: the one that runs and the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headway.plan.counts import FLOAT32, Work, optimizer_numbers, parameters, saved

Moment = Literal["loss", "first backward pass", "last backward pass", "update"]


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
    """The memory at the loss, in the backward pass of the last and of the first block, at the end.

    The backward pass begins with the last block, so this is its first moment.
    """
    config, item, counts = work.model, work.itemsize, parameters(work.model)
    block = counts.blocks / config.layers
    weights = FLOAT32 * counts.total / gpus
    if gpus > 1:
        weights += item * (counts.embedding + counts.head + min(2, config.layers) * block)
    elif item < FLOAT32:
        weights += item * counts.total
    optimizer = FLOAT32 * optimizer_numbers(config, work.muon) / gpus
    averaged, several = FLOAT32 * counts.total / gpus, work.micro_batches > 1
    earlier: float
    new: float
    if gpus > 1:
        # Gradients of earlier micro-batches are not sharded: they are averaged once per step.
        earlier, new = (FLOAT32 * counts.total if several else 0), 2 * FLOAT32 * block
        converted = averaged + new
    else:
        # The sum, and the gradients of the micro-batch before until those of the next replace them.
        earlier, new = ((FLOAT32 + item) * counts.total if several else 0), item * counts.total
        converted = averaged + (new if several or item < FLOAT32 else 0)
    kept = work.rows * sum(saved(config, work.tokens, item).values())
    inputs = work.tokens_at_once * config.width * item
    stored = config.layers * (inputs if work.recomputed == 1 else kept)
    stored += 2 * inputs + work.tokens_at_once * 8  # the last norm, and the tokens
    inside = (4 if config.mlp.is_gated else 2) * config.mlp_width + 2 * config.width
    first = work.tokens_at_once * inside * item + (kept if work.recomputed == 1 else 0)
    last = work.tokens_at_once * inside * item + kept
    # The loss computes the gradients of its inputs in the forward pass.
    of_loss = inputs + item * config.vocabulary * config.width
    # Muon: copies of the gradients, the momentum ahead, the updates, and the matrices of one shape,
    # which are iterated together.
    iterated = FLOAT32 * (3 * counts.matrices + counts.group) + 4 * item * counts.group
    muon = iterated / gpus if work.muon else 0
    sharded = averaged if gpus > 1 and not earlier else 0
    return [
        Memory("loss", weights, earlier, optimizer, stored, logits(work)),
        Memory("first backward pass", weights, earlier, optimizer, stored + first, of_loss),
        Memory("last backward pass", weights, earlier + sharded + new, optimizer, last, 0),
        Memory("update", weights, max(converted, earlier), optimizer, 0, 0),
        Memory("update", weights, averaged, optimizer + muon, 0, 0),
    ]


def logits(work: Work) -> float:
    """The bytes of `linear_cross_entropy`, which computes some logits at a time."""
    config, item = work.model, work.itemsize
    rows = min(max(1, work.logits_at_once // config.vocabulary), work.tokens_at_once)
    numbers, table = rows * config.vocabulary, config.vocabulary * config.width
    features = work.tokens_at_once * config.width * item
    several = rows < work.tokens_at_once
    # In float32, the logits need no copy, and log-probabilities and gradient are one tensor.
    wide, gradient = (FLOAT32, item) if item < FLOAT32 else (0, 0)
    kept = numbers * (FLOAT32 + gradient)  # of a part, until those of the next one replace them
    done = features if several else 0
    return FLOAT32 * table + max(
        FLOAT32 * table if wide else 0,  # at the start: the matrix in float32
        done + numbers * (item + wide + FLOAT32) + (kept if several else 0),  # at the softmax
        features + numbers * item + kept + item * table,  # at the products of the gradient
        2 * features + numbers * item + kept + (item * table if wide else 0),  # at the end
    )
