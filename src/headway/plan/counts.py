"""The operations and the bytes of one training step, counted from the config of a GPT.

Operations: 2 for each multiplication of a matrix product (Kaplan et al. 2020, section 2.1). Bytes:
every tensor that PyTorch keeps for the backward pass (compare Korthikanti et al. 2022, section 4),
and every tensor that a kernel reads or writes. `tests/plan` holds the counts against the profiler
and against real tensors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from headway.models.gpt import GPTConfig, shapes
from headway.models.parameters import Shape
from headway.training import muon

FLOAT32 = 4
TILE = 128  # kernels of attention compute whole tiles of this many keys

# What the MLP keeps for the backward pass, in tensors of its width: the inputs or results of the
# activation, and the input of the last product. A gate also keeps both factors.
KEPT = {"gelu": 2, "gelu-exact": 2, "quick-gelu": 3, "relu": 1, "relu2": 2, "silu": 2, "tanh": 1}
KEPT_BY_GATE = {"silu": 4, "gelu": 4, "gelu-exact": 4, "relu": 3}


@dataclass(frozen=True)
class Work:
    """What one GPU does in a training step.

    Attributes
    ----------
    model
        The config of the model.
    tokens
        Tokens in a window.
    rows
        Windows that are processed at a time.
    micro_batches
        How often, before the parameters are updated.
    itemsize
        Bytes of a number in the computation: 2 for bfloat16, 4 for float32.
    muon
        Whether Muon trains the matrices.
    recomputed
        Fraction of the blocks' operations that the backward pass repeats: 1 with activation
        checkpointing.
    compiled
        Whether kernels are fused.
    logits_at_once
        Maximum number of logits in memory.
    """

    model: GPTConfig
    tokens: int
    rows: int
    micro_batches: int = 1
    itemsize: int = 2
    muon: bool = False
    recomputed: float = 0.0
    compiled: bool = True
    logits_at_once: int = 2**26

    @property
    def tokens_at_once(self) -> int:
        """The tokens of a micro-batch."""
        return self.rows * self.tokens

    @property
    def tokens_per_step(self) -> int:
        """The tokens of a GPU in a step."""
        return self.tokens_at_once * self.micro_batches


@dataclass(frozen=True)
class Parameters:
    """The number of parameters by part.

    blocks: all blocks. matrices: those in the blocks that Muon trains. group: the largest number of
    these in matrices of one shape. head: the output layer, 0
    if it is that of the embedding. embedding: the rest. muon: the operations of Muon's five
    iterations for all matrices.
    """

    blocks: int
    matrices: int
    group: int
    head: int
    embedding: int
    muon: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.blocks + self.head + self.embedding


@lru_cache
def parameters(config: GPTConfig) -> Parameters:
    """Count the parameters of a model."""
    table = shapes(config)
    sizes = {name: prod(shape) for name, shape in table.items()}
    blocks = sum(size for name, size in sizes.items() if name.startswith("blocks."))
    head = sum(size for name, size in sizes.items() if name.startswith("head."))
    matrices = [name for name in table if muon.is_matrix(name, len(table[name]))]
    groups = Counter(table[name] for name in matrices)
    sides = [sorted(table[name]) for name in matrices]
    return Parameters(
        blocks=blocks,
        matrices=sum(sizes[name] for name in matrices),
        group=max(prod(shape) * count for shape, count in groups.items()),
        head=head,
        embedding=sum(sizes.values()) - blocks - head,
        muon=sum(5 * (4 * small**2 * large + 2 * small**3) for small, large in sides),
    )


@lru_cache
def block_matrices(config: GPTConfig) -> list[Shape]:
    """The shapes (d_out, d_in) of the matrices of one block."""
    table = shapes(config).items()
    return [s for name, s in table if name.startswith("blocks.0.") and muon.is_matrix(name, len(s))]


def block_products(config: GPTConfig) -> int:
    """The operations of the matrix products of one block for one token, forward."""
    return 2 * sum(map(prod, block_matrices(config)))


def repeated_products(config: GPTConfig) -> int:
    """Those of `block_products` that checkpointing repeats: all but the last product."""
    return block_products(config) - 2 * config.width * config.mlp_width


def head_products(config: GPTConfig) -> int:
    """The operations of the output layer for one token, forward."""
    return 2 * config.width * config.vocabulary


def cells(config: GPTConfig, tokens: int, tile: int = TILE) -> float:
    """The scores of one head for a window that a kernel computes: whole tiles of visible keys."""
    if not config.attention.causal:
        return tokens**2
    seen = min(config.attention.window or tokens, tokens)
    corner = (seen - 1) * seen / 2  # the cells that the first queries lack
    return min(tokens * seen - corner + tokens * (tile - 1) / 2, tokens**2)


def attention_operations(config: GPTConfig, cells: float) -> float:
    """The operations of the scores and contexts of one block, forward, for this many cells."""
    return 4 * config.attention.heads * config.d_k * cells


@dataclass(frozen=True)
class Operations:
    """The operations of a step on one GPU, by part.

    products: matrix products of the blocks. attention: scores and contexts. head: the output layer.
    optimizer: the iterations of Muon.
    """

    products: float
    attention: float
    head: float
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.products + self.attention + self.head + self.optimizer


def profiled(work: Work, attention_backward: float = 2.5) -> Operations:
    """The operations that PyTorch's FlopCounterMode counts in a step, without the optimizer.

    It counts masked cells of attention too. attention_backward: 2.5 times the forward pass for
    FlashAttention, which computes the scores again (Dao 2023, section 3.1); 2 with kept weights.
    """
    config, tokens = work.model, work.tokens_per_step
    products = 3 * block_products(config) + work.recomputed * repeated_products(config)
    attention = attention_operations(config, work.tokens**2) * config.layers
    windows = work.rows * work.micro_batches
    return Operations(
        products=tokens * config.layers * products,
        attention=windows * attention * (1 + work.recomputed + attention_backward),
        head=3 * tokens * head_products(config),
    )


def saved(config: GPTConfig, tokens: int, itemsize: int) -> dict[str, int]:
    """The bytes that one block keeps for the backward pass of one window, by tensor, on a GPU.

    Statistics of norms and of attention are float32.
    """
    attention, width = config.attention, config.width
    d_q, d_kv = attention.heads * config.d_k, attention.groups * config.d_k
    has_rotary = config.positions.kind == "rotary"
    sizes = {"input": width, "attention_norm": width}
    sizes |= {"queries": d_q, "keys": d_kv, "values": d_kv, "context": d_q}
    if attention.qk_norm:
        sizes["unnormalized"] = d_q + d_kv
    if has_rotary or attention.qk_norm:  # the kernel's result has another order in memory
        sizes["merged"] = d_q
    sizes |= {"after_attention": width, "mlp_norm": width}
    kept = KEPT_BY_GATE if config.mlp.is_gated else KEPT
    sizes["mlp"] = kept[config.mlp.activation] * config.mlp_width
    per_norm = 2 if config.norm.kind == "layer" else 1
    statistics = 2 * per_norm + attention.heads
    if attention.qk_norm:
        statistics += attention.heads + attention.groups
    table = {name: tokens * size * itemsize for name, size in sizes.items()}
    if config.dropout:  # which features are kept
        table["dropout"] = 2 * tokens * width
    return table | {"statistics": tokens * statistics * FLOAT32}


def block_traffic(config: GPTConfig, itemsize: int, compiled: bool) -> float:
    """The bytes that all kernels but products and attention move, per token of one block.

    Forward and backward. Eager: each operation reads and writes its tensors. Compiled: neighbours
    are fused into one kernel, which reads its inputs and writes its outputs once.
    """
    attention, width, inside = config.attention, config.width, config.mlp_width
    heads = (attention.heads + attention.groups) * config.d_k  # of the queries and keys
    gated = config.mlp.is_gated
    if compiled:
        # Residual and norm: read 2, write 2; backward: read 3, write 1, twice, and their weights.
        stream = 2 * (4 + 5)
        hidden = (3 + 5) if gated else (2 + 3)
        # Rotation and norm of queries and keys in one kernel: read 1, write 1, each way.
        per_head = 4 if config.positions.kind == "rotary" or attention.qk_norm else 0
    else:
        # Norm 2, residual 3; backward: norm 3 and its weights 2, sum of the residual's gradients 3,
        # of those of queries, keys and values 6, and of gate and up 3.
        stream = 2 * (2 + 3 + 5 + 3) + 6 + (3 if gated else 0)
        hidden = (2 + 3 + 6 + 3) if gated else (2 + 3)
        per_head = 0
        if attention.qk_norm:
            per_head += 2 + 5
        if config.positions.kind == "rotary":  # four products, two sums, one concatenation
            per_head += 10 + 12
        if config.positions.kind == "rotary" or attention.qk_norm:
            stream += 2 * 2  # the copies of the context and of its gradient
    if config.dropout:
        stream += 2 * 2 * 3
    return itemsize * (stream * width + hidden * inside + per_head * heads)


def loss_traffic(config: GPTConfig, itemsize: int, compiled: bool) -> int:
    """The bytes of the loss per token: all kernels over the logits but the matrix products."""
    # Compiled: read for the maximum and the sum, read and written for the gradient. Eager: to
    # float32, log-softmax, exponential, to the format of the gradient.
    reads = 3 * itemsize + FLOAT32 if compiled else 2 * itemsize + (2 + 3 + 2 + 1) * FLOAT32
    return reads * config.vocabulary


def update_traffic(config: GPTConfig, with_muon: bool, itemsize: int) -> float:
    """The bytes of an update of all parameters: norm of the gradient, optimizer, rounded copies."""
    count = parameters(config)
    clip, copy, adamw = 3 * FLOAT32, FLOAT32 + itemsize, 7 * FLOAT32
    of_muon = count.matrices if with_muon else 0
    return count.total * (clip + copy) + (count.total - of_muon) * adamw + of_muon * 20 * FLOAT32


def optimizer_numbers(config: GPTConfig, with_muon: bool) -> int:
    """The float32 numbers of the optimizer: two per parameter, but one per parameter of Muon."""
    count = parameters(config)
    return 2 * count.total - (count.matrices if with_muon else 0)
