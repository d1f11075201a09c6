"""The cards that a plan knows, and the fractions of their limits that training reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from headway.nearest import named

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card, with numbers of its data sheet.

    Attributes
    ----------
    title
        The name in full.
    generation
        Name in EFFICIENCIES: cards of one generation reach the same fractions of their limits.
    peak
        Operations per second of products of dense bfloat16 matrices.
    memory
        Bytes that PyTorch can allocate; less than on the data sheet.
    bandwidth
        Bytes per second between the card and its memory.
    link
        Bytes per second to the other cards of a node, in one direction.
    network
        Bytes per second of a card to other nodes, in one direction: not a property of the card, but
        what clusters with it usually have.
    source
        Where the numbers come from.
    """

    title: str
    generation: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    network: float
    source: str


# Network: 8 x 400 Gbit/s for a node of 8 H100 or later (DGX H100 data sheet), 8 x 200 Gbit/s for a
# node of 8 A100 (DGX A100 data sheet), 25 Gbit/s for a card in other servers (a common instance).
_DGX_H100, _DGX_A100, _OTHER = 50e9, 25e9, 3.125e9

CARDS: Mapping[str, Card] = MappingProxyType(
    {
        "h100": Card(
            "NVIDIA H100 SXM 80 GB", "hopper", 989.4e12, 79.1 * GIB, 3.35e12, 450e9, _DGX_H100,
            "NVIDIA H100 data sheet, without sparsity",
        ),
        "h100-500w": Card(
            "NVIDIA H100 96 GB at 500 W", "hopper", 912e12, 94.5 * GIB, 2.4e12, 450e9, _DGX_H100,
            "torchtitan, llama3_h100_202412: between SXM (989 TFLOP/s) and NVL (835); the middle",
        ),
        "h200": Card(
            "NVIDIA H200 SXM 141 GB", "hopper", 989.4e12, 139.8 * GIB, 4.8e12, 450e9, _DGX_H100,
            "NVIDIA H200 data sheet, without sparsity",
        ),
        "b200": Card(
            "NVIDIA B200 SXM 180 GB", "hopper", 2250e12, 178.4 * GIB, 7.7e12, 900e9, _DGX_H100,
            "NVIDIA DGX B200 data sheet, without sparsity; fractions of Hopper, not tested",
        ),
        "a100": Card(
            "NVIDIA A100 SXM 80 GB", "ampere", 312e12, 79.2 * GIB, 2.039e12, 300e9, _DGX_A100,
            "NVIDIA A100 data sheet, without sparsity",
        ),
        "a100-40gb": Card(
            "NVIDIA A100 SXM 40 GB", "ampere", 312e12, 39.4 * GIB, 1.555e12, 300e9, _DGX_A100,
            "NVIDIA A100 data sheet, without sparsity",
        ),
        "l4": Card(
            "NVIDIA L4 24 GB", "ampere", 121e12, 22.0 * GIB, 0.3e12, 32e9, _OTHER,
            "NVIDIA L4 data sheet, without sparsity; fractions of Ampere, not tested",
        ),
        "4090": Card(
            "NVIDIA GeForce RTX 4090 24 GB", "ampere", 165.2e12, 23.5 * GIB, 1.008e12, 32e9, _OTHER,
            "NVIDIA Ada architecture white paper, appendix A; fractions of Ampere, not tested",
        ),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Efficiency:
    """The fractions of a card's limits that training reaches, and the latency of its links.

    Attributes
    ----------
    products
        Fraction of the peak that large matrix products reach.
    attention
        The same for attention with very wide heads; with heads of d features it is d / (d + 64) of
        that, because the exponentials take as long for narrow heads as for wide ones.
    memory
        Fraction of the memory's bandwidth that other kernels reach.
    links, network
        Fraction of the bandwidth that collectives of NCCL reach inside a node and between nodes.
    """

    products: float
    attention: float
    memory: float
    links: float = 0.8
    network: float = 0.8


# Fitted to half of the published measurements, and tested on the other half, by
# `python -m benchmarks.plan`: docs/scale.md shows all errors. Products and attention by the
# generation of the card, memory by whether kernels are fused (torch.compile). Links: NCCL reaches
# about 0.8 of 450 GB/s on an H100 (376 GB/s in issue 1264 of NVIDIA/nccl); the same for networks.
PRODUCTS = {"ampere": 0.67, "hopper": 0.56}
ATTENTION = {"ampere": 0.75, "hopper": 0.26}
MEMORY = {False: 0.49, True: 0.68}


def efficiency_of(card: Card, compiled: bool) -> Efficiency:
    """The fractions of a card's limits that training reaches by default."""
    return Efficiency(PRODUCTS[card.generation], ATTENTION[card.generation], MEMORY[compiled])


# Seconds per hop of NCCL's ring, inside a node and between nodes, and to start a collective: the
# constants of the protocol Simple in NCCL's file src/graph/tuning.cc.
HOP, NETWORK_HOP, START = 3.4e-6, 14e-6, 8.4e-6


@dataclass(frozen=True)
class Cluster:
    """Cards of one kind in nodes. Raises ValueError for numbers that do not match."""

    card: Card
    gpus: int = 1
    per_node: int = 8

    def __post_init__(self) -> None:
        for name in ("gpus", "per_node"):
            if getattr(self, name) < 1:
                shown = name.replace("_", "-")
                raise ValueError(f"{shown} must be at least 1 (got {getattr(self, name)})")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise ValueError(
                f"gpus must be a multiple of per-node, or at most per-node "
                f"(got {self.gpus} and {self.per_node})"
            )

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return max(1, self.gpus // self.per_node)


def card_named(name: str) -> Card:
    """Return a card. Raises ValueError for an unknown name, with the nearest one."""
    return named(CARDS, name.lower(), "card")
