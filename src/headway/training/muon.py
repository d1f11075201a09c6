"""Muon: momentum whose update is made orthogonal (Jordan 2024, "Muon: an optimizer for hidden
layers in neural networks"), with the scale of Liu et al. 2025, "Muon is scalable for LLM training".

For a matrix W (d_out, d_in) with gradient G, at learning rate r and weight decay w:

    M <- 0.9 M + 0.1 G              U = orthogonal(0.9 M + 0.1 G)         (Nesterov's look ahead)
    W <- (1 - r w) W - r * 0.2 sqrt(max(d_out, d_in)) U

The scale gives U the size of AdamW's update, so that both share one learning rate.
"""

from collections.abc import Iterator, Mapping

from einops import rearrange
from jaxtyping import Float

from headway.attention.arrays import Array, namespace

MOMENTUM = 0.9  # a prototype on char-cpu, 350 steps, one seed: 1.815 nats, and 1.850 after 0.95

Matrices = list[Array]  # each (d_out, d_in)

# Beside the projections of the blocks a model has tables and the head, which AdamW trains.
_TABLES = ("embedding", "head", "position_bias.table")


def is_matrix(name: str, ndim: int) -> bool:
    """Whether Muon trains this parameter: a projection inside a block."""
    return ndim >= 2 and not name.removesuffix(".weight").endswith(_TABLES)


def orthogonal(matrices: Float[Array, "*batch d_out d_in"]) -> Float[Array, "*batch d_out d_in"]:
    """Near to U V^T of each matrix U S V^T: its singular values come to lie around 1.

    Five steps of Newton and Schulz's iteration X <- a X + (b X X^T + c (X X^T)^2) X with Jordan's
    quintic, which brings every singular value above 0.01 of the whole to between 0.6 and 1.3.
    """
    xp = namespace(matrices)
    wide = matrices.shape[-2] <= matrices.shape[-1]
    X = matrices if wide else matrices.mT  # the smaller square
    X = X / (xp.sqrt(xp.sum(X * X, axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(5):
        square = X @ X.mT
        X = 3.4445 * X + (-4.7750 * square + 2.0315 * (square @ square)) @ X
    return X if wide else X.mT


def scale(d_out: int, d_in: int) -> float:
    """What an orthogonal update is multiplied with."""
    return float(0.2 * max(d_out, d_in) ** 0.5)


def updates(moved: Mapping[str, Array]) -> dict[str, Array]:
    """U, scaled, of each parameter; moved: what is to be made orthogonal, by the parameters' names.

    Matrices of one shape are made orthogonal together.
    """
    pieces = {name: unpacked(name, value) for name, value in moved.items()}
    alike: dict[tuple[int, ...], list[Array]] = {}
    for matrix in (each for matrices in pieces.values() for each in matrices):
        alike.setdefault(tuple(matrix.shape), []).append(matrix)
    found: dict[tuple[int, ...], Iterator[Array]] = {}
    for shape, matrices in alike.items():
        stacked = orthogonal(namespace(matrices[0]).stack(matrices))
        found[shape] = iter([scale(*shape) * each for each in stacked])
    return {
        name: packed(name, [next(found[tuple(m.shape)]) for m in pieces[name]], value)
        for name, value in moved.items()
    }


def unpacked(name: str, value: Float[Array, "..."]) -> Matrices:
    """The separate matrices (d_out, d_in) of a parameter: the ladder's W_* are (d_in, d_out)."""
    owner = name.rpartition(".")[2]
    if value.ndim == 3:  # `stacked`: a matrix for each head
        return [rearrange(value, "heads d_in d_out -> (heads d_out) d_in")]
    if owner == "W_qkv":
        return [*rearrange(value, "d_in (three d_out) -> three d_out d_in", three=3)]
    return [value.mT if owner.startswith("W_") else value]


def packed(name: str, matrices: Matrices, like: Float[Array, "..."]) -> Float[Array, "..."]:
    """The parameter of these matrices: the inverse of `unpacked`."""
    if like.ndim == 3:
        return rearrange(matrices[0], "(heads d_out) d_in -> heads d_in d_out", heads=like.shape[0])
    if len(matrices) == 3:
        return namespace(like).concat([matrix.mT for matrix in matrices], axis=1)
    return matrices[0].mT if name.rpartition(".")[2].startswith("W_") else matrices[0]
