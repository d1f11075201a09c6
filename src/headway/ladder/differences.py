"""What differs between two rungs whose results are equal: the work and the memory."""

from math import ceil
from typing import TypedDict

from headway.attention.grid import grid_of
from headway.attention.online import context_of, start, with_block
from headway.ladder.rung import SENTENCE, Rung, run_example
from headway.ladder.rungs import rung_named
from headway.tracing import Trace

BLOCK = 2  # keys per block, so that a short text has several blocks


class Running(TypedDict):
    """The online softmax of the last query after some keys: m, l, c and c / l."""

    keys: int
    largest: float
    total: float
    context: list[float]
    result: list[float]


class Differences(TypedDict):
    """What differs between a rung and the rung that it equals; the two are keys of the mappings.

    products: matrix products. scores: the scores that are in memory at a time. running: for each
    head, the online softmax after each block of keys; empty for a rung without blocks.
    """

    equals: str
    products: dict[str, int]
    scores: dict[str, int]
    running: list[list[Running]]


def what_differs(rung: Rung, text: str = SENTENCE) -> Differences | None:
    """Compare the example of a rung on a text with that of the rung that it equals, if any.

    Rungs with blocks are counted with blocks of BLOCK keys. The result can be written as JSON.
    """
    if rung.equals is None:
        return None
    words, steps, _ = run_example(rung, text)
    tokens, heads = len(words), rung.example().heads
    both = (rung_named(rung.equals), rung)
    return {
        "equals": rung.equals,
        "products": {one.name: one.products(heads, ceil(tokens / BLOCK)) for one in both},
        "scores": {
            one.name: heads * tokens * (min(BLOCK, tokens) if one.has_blocks else tokens)
            for one in both
        },
        "running": _running(steps) if rung.has_blocks else [],
    }


def _running(steps: Trace) -> list[list[Running]]:
    queries, keys, values = (steps[name] for name in ("queries", "keys", "values"))
    spec, tokens = steps.notes["spec"], keys.shape[-2]
    last = slice(tokens - 1, tokens)
    queries, grid = queries[..., last, :], grid_of(queries, keys, spec)
    state = start(queries, values, spec, grid)
    running: list[list[Running]] = [[] for _ in keys]
    for first in range(0, tokens, BLOCK):
        block = slice(first, min(first + BLOCK, tokens))
        cells = grid.select(rows=last, columns=block)
        state = with_block(state, queries, keys[:, block], values[:, block], spec, cells)
        result = context_of(state)
        for head, rows in enumerate(running):
            rows.append(
                {
                    "keys": block.stop,
                    "largest": float(state.largest[head, 0, 0]),
                    "total": float(state.total[head, 0, 0]),
                    "context": state.context[head, 0].tolist(),
                    "result": result[head, 0].tolist(),
                }
            )
    return running
