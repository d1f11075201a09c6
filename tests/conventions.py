"""Measure the conventions in which attention libraries differ, with small arrays.

`python -m conventions` writes the table into docs/conventions.md; a test compares the table again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import headway
from engines import ENGINES, Engine
from headway.attention.heads import merge, split

PAGE = Path(__file__).parents[1] / "docs" / "conventions.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


class Unknown(Exception):  # noqa: N818 - a name without "Error"
    """The behavior of a library is not among the known answers: inspect it and add an answer."""


class NotTaken(Exception):  # noqa: N818 - a name without "Error"
    """The library used another code path for this call, so this path has no result."""


# --- the libraries


class Way(NamedTuple):
    """One code path of a library, for arrays (batch, heads, tokens, dim) of its engine."""

    engine: Engine
    attend: Callable[..., Any]


class Library(NamedTuple):
    ways: dict[str, Way]
    as_shipped: Callable[..., Any]  # for arrays in the library's layout
    parameters: set[str]
    # The names of its options; None for options that it does not have.
    mask: str
    bias: str
    causal: str
    window: str | None
    grouped: dict[str, Any]
    dropout: dict[str, Any] | None


def sdpa(backend: SDPBackend, *arrays: Any, **options: Any) -> Any:
    with sdpa_kernel(backend):
        return nn.functional.scaled_dot_product_attention(*arrays, **options)


def multihead(width: int, heads: int, **options: Any) -> nn.MultiheadAttention:
    """A module in eval() whose projections are identities, so that only attention is left."""
    module = nn.MultiheadAttention(width, heads, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(width).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(width))
    return module


def mha(
    queries: Any, keys: Any, values: Any, *, fast: bool, need_weights: bool, **options: Any
) -> Any:
    _, heads, _, dim = queries.shape
    dropout = options.pop("dropout", 0.0)
    module = multihead(heads * dim, heads, batch_first=True, dropout=dropout)
    # Equal arrays must stay identical objects: the module needs this to detect self-attention.
    merged = {id(array): merge(array) for array in (queries, keys, values)}
    with (
        mock.patch.object(torch.backends.mha, "get_fastpath_enabled", return_value=fast),
        mock.patch.object(
            torch, "_native_multi_head_attention", wraps=torch._native_multi_head_attention
        ) as native,
    ):
        context, _ = module(
            *(merged[id(array)] for array in (queries, keys, values)),
            need_weights=need_weights,
            **options,
        )
    if native.called != fast:
        raise NotTaken
    return split(context, heads)


def jax_attention(*arrays: Any, **options: Any) -> Any:
    swapped = (array.swapaxes(1, 2) for array in arrays)
    return jax.nn.dot_product_attention(*swapped, **options).swapaxes(1, 2)


TORCH, JAX = ENGINES["torch"], ENGINES["jax"]
LIBRARIES = {
    "torch SDPA": Library(
        ways={
            "flash": Way(TORCH, partial(sdpa, SDPBackend.FLASH_ATTENTION)),
            "math": Way(TORCH, partial(sdpa, SDPBackend.MATH)),
        },
        as_shipped=nn.functional.scaled_dot_product_attention,
        parameters={
            argument.name
            for argument in torch.ops.aten.scaled_dot_product_attention.default._schema.arguments
        },
        mask="attn_mask",
        bias="attn_mask",
        causal="is_causal",
        window=None,
        grouped={"enable_gqa": True},
        dropout={"dropout_p": 0.5},
    ),
    "`nn.MultiheadAttention`": Library(
        ways={
            "need_weights=True": Way(TORCH, partial(mha, fast=False, need_weights=True)),
            "need_weights=False": Way(TORCH, partial(mha, fast=False, need_weights=False)),
            "fast path": Way(TORCH, partial(mha, fast=True, need_weights=False)),
        },
        as_shipped=lambda *arrays: multihead(arrays[0].shape[-1], heads=1)(*arrays)[0],
        parameters={
            *inspect.signature(nn.MultiheadAttention).parameters,
            *inspect.signature(nn.MultiheadAttention.forward).parameters,
        },
        mask="attn_mask",
        bias="attn_mask",
        causal="is_causal",
        window=None,
        grouped={},
        dropout={"dropout": 0.5},
    ),
    "`jax.nn.dot_product_attention`": Library(
        ways={"XLA": Way(JAX, partial(jax_attention, implementation="xla"))},
        as_shipped=jax.nn.dot_product_attention,
        parameters=set(inspect.signature(jax.nn.dot_product_attention).parameters),
        mask="mask",
        bias="bias",
        causal="is_causal",
        window="local_window_size",
        grouped={},
        dropout=None,
    ),
    "Headway": Library(
        ways={
            "sdpa": Way(TORCH, partial(headway.attend, kernel="sdpa")),
            "plain": Way(TORCH, partial(headway.attend, kernel="plain")),
            "JAX": Way(JAX, headway.attend),
        },
        as_shipped=headway.attend,
        parameters=set(inspect.signature(headway.attend).parameters),
        mask="mask",
        bias="bias",
        causal="causal",
        window="window",
        grouped={},
        dropout={"dropout": 0.5, "seed": 0},
    ),
}


# --- classifying the results


def classify(output: Any, known: dict[str, Any]) -> str:
    """Return the name of the only known answer that equals the output."""
    names = [
        name
        for name, answer in known.items()
        if np.allclose(output, answer, rtol=0, atol=1e-6, equal_nan=True)
    ]
    if len(names) != 1:
        raise Unknown(f"the output equals {names or 'none'} of {list(known)}:\n{output}")
    return names[0]


REFUSALS = {
    "Need attn_mask if specifying the is_causal hint": "error: requires a mask too",
    "Explicit attn_mask should not be set when is_causal": "error",
    "mask dtype should be bool": "error: use `bias`",
    "numbers to add to the scores must be passed as bias": "error: use `bias`",
    "mat1 and mat2 shapes cannot be multiplied": "error",
    "No available kernel": "error",
    "the option dropout": "error",
}


def refusal(error: Exception) -> str:
    for message, words in REFUSALS.items():
        if message in str(error):
            return words
    raise Unknown(str(error)) from error


def given(way: Way, options: dict[str, Any]) -> dict[str, Any]:
    """Convert the arrays among the options to arrays of the engine."""
    return {
        name: way.engine.array(option) if isinstance(option, np.ndarray) else option
        for name, option in options.items()
    }


@torch.no_grad()
def weights(way: Way, rows: int, columns: int, **options: Any) -> np.ndarray:
    """Return the weights of a call.

    The values are the identity matrix, so that the output equals the weights. Queries and keys are
    identity matrices too, so that the weights are not uniform.
    """
    queries, keys = (
        way.engine.array(np.tile(np.eye(tokens, columns), (1, 2, 1, 1)))
        for tokens in (rows, columns)
    )
    if rows == columns:
        queries = keys  # one array, so that `mha` sees self-attention
    return way.engine.numpy(way.attend(queries, keys, keys, **given(way, options)))


def expected(allowed: np.ndarray, numbers: Any = 0.0) -> np.ndarray:
    """Return the expected result of `weights` for allowed cells; fully masked queries give 0."""
    exponentials = np.exp(np.eye(*allowed.shape) / np.sqrt(allowed.shape[1]) + numbers) * allowed
    return exponentials / np.maximum(exponentials.sum(axis=1, keepdims=True), 1e-9)


# --- the questions: functions of a library and one of its code paths that return a short answer


def layout(library: Library, way: Way) -> str:
    if "embed_dim" in library.parameters:  # a module, whose inputs have no heads axis
        shape, names = (2, 3, 4), {"(tokens, batch, dim)": 0, "(batch, tokens, dim)": 1}
    else:
        shape = (2, 3, 4, 5)
        names = {"(batch, tokens, heads, dim)": 1, "(batch, heads, tokens, dim)": 2}
    values = np.random.default_rng(0).normal(size=shape)
    same = way.engine.array(np.zeros(shape))  # equal scores: the output is the mean over tokens
    output = way.engine.numpy(library.as_shipped(same, same, way.engine.array(values)))
    return classify(
        output, {name: values.mean(axis, keepdims=True) for name, axis in names.items()}
    )


def boolean_mask(library: Library, way: Way) -> str:
    mask = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool)
    output = weights(way, 3, 3, **{library.mask: mask})
    return classify(
        output, {"True = may attend": expected(mask), "True = may not attend": expected(~mask)}
    )


def allow(library: Library, way: Way, allowed: np.ndarray) -> dict[str, Any]:
    """The boolean mask of the library for these cells."""
    attends = boolean_mask(library, way) == "True = may attend"
    return {library.mask: allowed if attends else ~allowed}


def numbers_as_mask(library: Library, way: Way) -> str:
    numbers = np.log([[1.0, 2, 3], [3, 1, 1], [1, 5, 1]])
    output = weights(way, 3, 3, **{library.mask: numbers})
    return classify(output, {"added to the scores": expected(np.ones((3, 3)), numbers)})


def causal_alone(library: Library, way: Way) -> str:
    output = weights(way, 3, 3, **{library.causal: True})
    everything = np.ones((3, 3))
    return classify(
        output,
        {"causal": expected(np.tri(3)), "**ignored: attends to the future**": expected(everything)},
    )


def alignment(rows: int, columns: int) -> Callable[[Library, Way], str]:
    def aligned(library: Library, way: Way) -> str:
        return classify(
            weights(way, rows, columns, **{library.causal: True}),
            {
                "top left": expected(np.tri(rows, columns)),
                "bottom right": expected(np.tri(rows, columns, columns - rows)),
            },
        )

    return aligned


def mask_and_causal(library: Library, way: Way) -> str:
    mask = np.array([[1, 0, 1]] * 3, dtype=bool)
    both = {**allow(library, way, mask), library.causal: True}
    return classify(
        weights(way, 3, 3, **both),
        {
            "both apply": expected(mask & np.tri(3, dtype=bool)),
            "mask only": expected(mask),
            "causal only": expected(np.tri(3)),
        },
    )


# The first of three queries is fully masked: it may attend to no key.
ALIVE = np.array([[False] * 3, [True] * 3, [True] * 3])


def by_mask(library: Library, way: Way) -> dict[str, Any]:
    return allow(library, way, ALIVE)


def by_infinity(library: Library, way: Way) -> dict[str, Any]:
    return {library.bias: np.where(ALIVE, 0.0, -np.inf)}


def masked_query(masking: Callable[..., dict[str, Any]]) -> Callable[[Library, Way], str]:
    def output(library: Library, way: Way) -> str:
        clean = expected(ALIVE)
        return classify(
            weights(way, 3, 3, **masking(library, way)),
            {
                "0": clean,
                "NaN": np.where(ALIVE, clean, np.nan),
                "mean of the values": np.where(ALIVE, clean, 1 / 3),
            },
        )

    return output


def gradients(
    library: Library, way: Way, masking: Callable[..., dict[str, Any]], rows: slice, known: Any
) -> str:
    """Classify the gradients of queries, keys and values for a loss of some output rows only."""
    options = given(way, masking(library, way))
    arrays = np.random.default_rng(0).normal(size=(3, 1, 2, 3, 3))
    output = way.engine.gradients(
        lambda *leaves: way.attend(*leaves, **options)[:, :, rows], *arrays
    )
    if np.isnan(output).any():
        return "NaN"
    return classify(
        output, {name: TORCH.gradients(answer, *arrays) for name, answer in known.items()}
    )


def gradients_of_masked_query(
    masking: Callable[..., dict[str, Any]],
) -> Callable[[Library, Way], str]:
    known = {
        "0": lambda queries, keys, values: values[:, :, :1] * 0,
        "those of a mean of the values": lambda queries, keys, values: values.mean(2, keepdim=True),
    }
    return lambda library, way: gradients(library, way, masking, slice(0, 1), known)


def gradients_of_others(masking: Callable[..., dict[str, Any]]) -> Callable[[Library, Way], str]:
    def without(queries: Any, keys: Any, values: Any) -> Any:
        return (queries[:, :, 1:] @ keys.mT / 3**0.5).softmax(-1) @ values

    return lambda library, way: gradients(library, way, masking, slice(1, 3), {"correct": without})


def grouped_heads(library: Library, way: Way) -> str:
    queries = way.engine.array(np.ones((1, 4, 2, 3)))
    values = np.tile(np.arange(2.0).reshape(2, 1, 1), (1, 1, 2, 3))  # head h is full of h
    values = way.engine.array(values)
    output = way.engine.numpy(way.attend(queries, values, values, **library.grouped))
    known = {"h // (heads // kv_heads)": [0, 0, 1, 1], "h % kv_heads": [0, 1, 0, 1]}
    asked = "".join(f", with {name}={value}" for name, value in library.grouped.items())
    return classify(output[0, :, 0, 0], known) + asked


def lacks(library: Library, what: str) -> str:
    """Check that the installed version has no such parameter, and return "no ..."."""
    if any(what in name for name in library.parameters):
        raise Unknown(f"this version has a parameter for {what}: {library.parameters}")
    return f"no {what}"


def window(causal: bool) -> Callable[[Library, Way], str]:
    def extent(library: Library, way: Way) -> str:
        if library.window is None:
            return lacks(library, "window")
        back = np.arange(8)[:, None] - np.arange(8)  # query position - key position
        output = weights(way, 8, 8, **{library.window: 2, library.causal: causal})
        return classify(
            output,
            {
                "W keys, up to itself": expected((back >= 0) & (back < 2)),
                "W + 1 keys, up to itself": expected((back >= 0) & (back <= 2)),
                "2 W + 1 keys, centered on itself": expected(abs(back) <= 2),
            },
        )

    return extent


def dropout(library: Library, way: Way) -> str:
    if library.dropout is None:
        return lacks(library, "dropout")
    output = weights(way, 8, 8, **library.dropout)
    everything = expected(np.ones((8, 8)))
    dropped = np.where(output == 0, 0.0, 2 * everything)
    return classify(output, {"off": everything, "drops": dropped})


QUESTIONS: dict[str, Callable[[Library, Way], str]] = {
    "axes": layout,
    "a boolean mask": boolean_mask,
    "a float mask": numbers_as_mask,
    "causal alone": causal_alone,
    "causal, fewer queries than keys": alignment(2, 4),
    "causal, more queries than keys": alignment(4, 2),
    "mask and causal": mask_and_causal,
    "fully masked query (boolean mask): output": masked_query(by_mask),
    "fully masked query (boolean mask): its gradients": gradients_of_masked_query(by_mask),
    "fully masked query (boolean mask): gradients of the other queries": gradients_of_others(
        by_mask
    ),
    "fully masked query (bias of -inf): output": masked_query(by_infinity),
    "fully masked query (bias of -inf): its gradients": gradients_of_masked_query(by_infinity),
    "fully masked query (bias of -inf): gradients of the other queries": gradients_of_others(
        by_infinity
    ),
    "query head h reads kv head": grouped_heads,
    "a window of W": window(causal=False),
    "a window of W and causal": window(causal=True),
    "dropout requested, in `eval()`": dropout,
}


# --- the table


def cell(library: Library, question: Callable[[Library, Way], str]) -> str:
    """Return the answer; if the code paths differ, each answer followed by its code paths."""
    answers: dict[str, list[str]] = {}
    for name, way in library.ways.items():
        try:
            answer = question(library, way)
        except NotTaken:
            continue
        except (RuntimeError, ValueError) as error:
            answer = refusal(error)
        answers.setdefault(answer, []).append(name)
    if not answers:
        raise Unknown("no code path was used")
    if len(answers) == 1:
        return next(iter(answers))
    return "; ".join(f"{answer} ({', '.join(names)})" for answer, names in answers.items())


def measured() -> str:
    """Return a line with the versions of the libraries, and the table in Markdown."""
    versions = f"torch {torch.__version__.split('+')[0]} and jax {jax.__version__}"
    lines = [
        f"Measured with {versions}, on a CPU.",
        "",
        f"| | {' | '.join(LIBRARIES)} |",
        "|---" * (len(LIBRARIES) + 1) + "|",
    ]
    for label, question in QUESTIONS.items():
        cells = (cell(library, question) for library in LIBRARIES.values())
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def on_the_page() -> tuple[str, str, str]:
    """Return docs/conventions.md in three parts: before the measured table, it, and after it."""
    before, rest = PAGE.read_text().split(BEGIN)
    part, after = rest.split(END)
    return before + BEGIN, part, END + after


if __name__ == "__main__":
    before, _, after = on_the_page()
    PAGE.write_text(before + measured() + after)
