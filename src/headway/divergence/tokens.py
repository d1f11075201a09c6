"""The tokens on which two models are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headway.divergence.sides import Recorded, Side

BATCH, TOKENS = 2, 23  # of random tokens; not a usual number of heads or features


def chosen(tokens: Any, *sides: Side) -> tuple[np.ndarray, list[str]]:
    """The tokens (batch, tokens), and notes. Raises ValueError if they do not fit the models."""
    sizes = [side.vocabulary for side in sides if side.vocabulary is not None]
    notes = [vocabularies(*sizes)] if len({*sizes}) > 1 else []
    padding = [side.settings.pad_left + side.settings.pad_right for side in sides]
    rooms = [
        (side.context - more, side.context)
        for side, more in zip(sides, padding, strict=True)
        if side.context is not None
    ]
    room, context = min(rooms, default=(TOKENS, TOKENS))
    if tokens is None:
        recorded = next((side.tokens for side in sides if isinstance(side, Recorded)), None)
        shape = BATCH, max(min(TOKENS, room), 1)
        random = np.random.default_rng(0).integers(0, min(sizes, default=1), shape)
        tokens = random if recorded is None else recorded
    elif isinstance(tokens, str):
        tokens = _encoded(tokens, sides, notes)
    array = np.atleast_2d(np.asarray(tokens))
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        given = f"{array.dtype} {array.shape}"
        raise ValueError(f"tokens must be integers (batch, tokens) (got {given})")
    if rooms and array.shape[1] > room:
        what = f"{array.shape[1]} tokens"
        if any(padding):
            what = f"{what} and {max(padding)} of padding"
        raise ValueError(f"{what} do not fit a context of {context}; give fewer")
    if sizes and (array.min() < 0 or array.max() >= min(sizes)):
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"tokens must be from 0 to {min(sizes) - 1} (got {wrong})")
    return array.astype(np.int64), notes


def vocabularies(one: int, two: int) -> str:
    """Say that the models have vocabularies of these sizes."""
    return (
        f"the models have vocabularies of {one:,} and {two:,} tokens; the logits of the first "
        f"{min(one, two):,} are compared"
    )


def _encoded(text: str, sides: Sequence[Side], notes: list[str]) -> np.ndarray:
    """The tokens of a text, by the tokenizer of the first side that has one.

    Raises ValueError without a tokenizer or tokens.
    """
    rows = [(side.title, side.tokenizer.prompt(text)) for side in sides if side.tokenizer]
    if not rows:
        raise ValueError("no side has a tokenizer; omit the text to compare random tokens")
    if len(rows) == 2 and not np.array_equal(rows[0][1], rows[1][1]):
        notes.append(
            f"the tokenizers of {rows[0][0]} and {rows[1][0]} give other tokens for this text "
            f"({len(rows[0][1])} and {len(rows[1][1])}); both models get the first ones"
        )
    if not len(rows[0][1]):
        raise ValueError("the text is empty; give one with at least one character")
    row: np.ndarray = rows[0][1][None]
    return row
