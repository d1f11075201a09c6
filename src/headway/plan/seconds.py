"""The time of a training step by part: matrix products, attention, memory, communication.

Each part takes its operations or bytes, divided by the limit of the card times the fraction of it
that training reaches. Communication of sharded training (FSDP, Zhao et al. 2023; stage 3 of ZeRO,
Rajbhandari et al. 2020) runs next to the computation; what exceeds it is exposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headway.plan.cards import HOP, NETWORK_HOP, START, Cluster, Efficiency
from headway.plan.counts import (
    FLOAT32,
    Work,
    attention_operations,
    block_products,
    block_traffic,
    cells,
    head_products,
    loss_traffic,
    parameters,
    repeated_products,
    update_traffic,
)


@dataclass(frozen=True)
class Averaging:
    """How gradients are averaged over the GPUs; by default as in Headway.

    Attributes
    ----------
    sharding
        full: parameters, gradients and optimizer are sharded (FSDP). none: each GPU has all
        parameters (DDP).
    itemsize
        Bytes of a number of a gradient when it is averaged.
    is_each
        Whether gradients are averaged for each micro-batch instead of once per step.
    """

    sharding: Literal["full", "none"] = "full"
    itemsize: int = FLOAT32
    is_each: bool = False


HEADWAY = Averaging()


@dataclass(frozen=True)
class Times:
    """Seconds of a step by part.

    products: matrix products of blocks and output layer. attention: scores and contexts. memory:
    kernels that wait for memory (norms, activations, residuals, the loss). update: the optimizer.
    exposed: communication during which the GPU waits.
    """

    products: float
    attention: float
    memory: float
    update: float
    exposed: float

    @property
    def total(self) -> float:
        """The time of a step."""
        return self.products + self.attention + self.memory + self.update + self.exposed


def collective(nbytes: float, cluster: Cluster, efficiency: Efficiency) -> float:
    """Seconds to gather or to reduce-scatter a tensor of this size over all cards.

    NCCL's ring: every byte enters each card once through its link, and each node once through the
    network, which all cards of the node share out. Each hop of the ring adds its latency.
    """
    card, gpus, nodes = cluster.card, cluster.gpus, cluster.nodes
    if gpus == 1:
        return 0.0
    seconds = nbytes * (gpus - 1) / gpus / (card.link * efficiency.links)
    if nodes > 1:
        network = card.network * cluster.per_node * efficiency.network
        seconds = max(seconds, nbytes * (nodes - 1) / nodes / network)
    hops = (gpus - nodes) * HOP + (nodes if nodes > 1 else 0) * NETWORK_HOP
    return START + seconds + hops


def seconds(
    work: Work, cluster: Cluster, efficiency: Efficiency, averaging: Averaging = HEADWAY
) -> Times:
    """The time of a step by part."""
    config, tokens, card = work.model, work.tokens_at_once, cluster.card
    products = card.peak * efficiency.products
    width = config.d_k / (config.d_k + 64)
    memory = card.bandwidth * efficiency.memory
    block = tokens * block_products(config) / products
    repeated = work.recomputed * tokens * repeated_products(config) / products
    head = 3 * tokens * head_products(config) / products
    scores = work.rows * attention_operations(config, cells(config, work.tokens))
    attention = scores / (card.peak * efficiency.attention * width)
    traffic = tokens * block_traffic(config, work.itemsize, work.compiled) / memory
    loss = tokens * loss_traffic(config, work.itemsize, work.compiled) / memory
    again = 1 + work.recomputed / 3
    counts, steps = parameters(config), work.micro_batches
    gpus = cluster.gpus if averaging.sharding == "full" else 1
    update = update_traffic(config, work.muon, work.itemsize) / memory / gpus
    # The gradient of each micro-batch is converted to float32 and added.
    update += steps * counts.total * (work.itemsize + 2 * FLOAT32) / memory
    if work.muon:
        update += counts.muon / products / cluster.gpus
    forward = block + attention + traffic / 3
    backward = 2 * block + repeated + attention * (2.5 + int(work.recomputed))
    backward += traffic * (again - 1 / 3)
    exposed = _exposed(work, cluster, efficiency, averaging, forward, backward)
    return Times(
        products=steps * ((3 * block + repeated) * config.layers + head),
        attention=steps * (3.5 + int(work.recomputed)) * attention * config.layers,
        memory=steps * (traffic * again * config.layers + loss),
        update=update,
        exposed=exposed,
    )


def _exposed(
    work: Work,
    cluster: Cluster,
    efficiency: Efficiency,
    averaging: Averaging,
    forward: float,
    backward: float,
) -> float:
    """Seconds of a step in which the GPU waits for communication.

    forward, backward: the computation of one block, next to which the parameters of the next one
    are gathered and the gradients of the one before are averaged.
    """
    if cluster.gpus == 1:
        return 0.0
    config, steps = work.model, work.micro_batches
    counts = parameters(config)
    block, root = counts.blocks / config.layers, counts.embedding + counts.head

    def moved(nbytes: float) -> float:
        return collective(nbytes, cluster, efficiency)

    reduce, last = moved(averaging.itemsize * block), moved(averaging.itemsize * root)
    if averaging.sharding == "none":  # an all-reduce next to the last backward pass
        reduce, last = 2 * reduce, 2 * last
        return config.layers * max(0.0, reduce - backward) + last
    gather = moved(work.itemsize * block)
    averaged = steps if averaging.is_each else 1  # backward passes with communication of gradients
    # Nothing hides the first gathering (root and first block) and the last averaging of gradients.
    waits = steps * (moved(work.itemsize * root) + gather) + averaged * last
    waits += steps * config.layers * max(0.0, gather - forward)
    waits += averaged * config.layers * max(0.0, gather + reduce - backward)
    return waits + (steps - averaged) * config.layers * max(0.0, gather - backward)
