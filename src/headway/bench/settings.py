"""What is compared: a setting is one table; the plan is the tables of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from headway.attention.masks import Mask, both, causal, window

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
SEED = 0
BACKWARD = 2.5  # forward passes that a backward pass costs (Dao 2023, section 4.1)


@dataclass(frozen=True)
class Setting:
    """One table: every implementation on the same inputs. By default the book's shape.

    window: a query sees that many keys, itself included; it is causal by itself.
    projections: queries, keys and values are made of x, and the context goes through W_output.
    """

    batch: int = 8
    tokens: int = 1024
    heads: int = 12
    kv_heads: int = 12
    head_dim: int = 64
    dtype: str = "float32"
    backward: bool = True
    compiled: bool = False
    causal: bool = True
    window: int | None = None
    dropout: float = 0.0
    projections: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch", "tokens", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more: {getattr(self, name)} is not")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} kv_heads do not divide {self.heads} heads")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}: {self.dtype!r} is not")
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window has a width of 1 or more: {self.window} is not")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share from 0 up to, not including, 1: {self.dropout}")

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Features of a token's keys; its values have as many."""
        return self.kv_heads * self.head_dim

    @property
    def mask(self) -> Mask | None:
        """Who may attend to whom."""
        mask = causal if self.causal else None
        return mask if self.window is None else both(mask, window(self.window))

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of `attend`."""
        options: dict[str, Any] = {"causal": self.causal, "window": self.window}
        return options | ({"dropout": self.dropout, "seed": SEED} if self.dropout else {})

    @property
    def cells(self) -> int:
        """Pairs of a query and a key that may meet, in one head of one batch row."""
        if self.window is not None:
            seen = min(self.window, self.tokens)
            return seen * self.tokens - seen * (seen - 1) // 2
        return self.tokens * (self.tokens + 1) // 2 if self.causal else self.tokens**2

    @property
    def flops(self) -> float:
        """Floating-point operations of one run, those that cannot be left out.

        Attention: 4 * head_dim for each pair that may meet, and BACKWARD times that backward.
        Projections: 2 * d_in * d_out a token, and twice that backward.
        """
        attention = 4.0 * self.batch * self.heads * self.cells * self.head_dim
        weights = 2 * self.width * (self.width + self.kv_width)
        projections = 2.0 * self.batch * self.tokens * weights * self.projections
        if self.backward:
            return attention * (1 + BACKWARD) + projections * 3
        return attention + projections

    @property
    def bytes(self) -> int:
        """The least that a run must move: inputs and outputs once, and their gradients once."""
        wide = self.batch * self.tokens * self.width
        narrow = self.batch * self.tokens * self.kv_width
        weights = 2 * self.width * (self.width + self.kv_width)
        numbers = 2 * wide + weights if self.projections else 2 * wide + 2 * narrow
        return numbers * (2 if self.backward else 1) * DTYPES[self.dtype]

    def __str__(self) -> str:
        return self.title(f"{self.tokens:,} tokens")

    def title(self, length: str = "") -> str:
        """What it is, in words. length: the same for the tokens, or nothing."""
        kv = "" if self.kv_heads == self.heads else f" ({self.kv_heads} of keys and values)"
        heads = f"{self.heads} heads of {self.head_dim}{kv}"
        parts = [
            f"batch {self.batch}",
            length,
            heads,
            self.dtype,
            "causal" if self.causal and self.window is None else "",
            f"window {self.window}" if self.window is not None else "",
            f"dropout {self.dropout:g}" if self.dropout else "",
            "forward + backward" if self.backward else "forward",
            "compiled" if self.compiled else "",
            f"{'with' if self.projections else 'without'} projections",
            "" if self.device == "cpu" else self.device,
        ]
        return ", ".join(part for part in parts if part)


LENGTHS = tuple(2**power for power in range(6, 14))  # 64 ... 8,192


def plan(device: str) -> Iterator[Setting]:
    """What `headway bench` compares by itself: the book's shape, what is asked of one text of it,
    then a sweep of lengths."""
    book = Setting(device=device)
    yield replace(book, backward=False)
    yield book
    one = replace(book, batch=1)
    yield replace(one, compiled=True)
    yield replace(one, dtype="bfloat16")
    yield replace(one, window=128)
    yield replace(one, dropout=0.1)
    yield replace(one, projections=True)
    yield from lengths(replace(one, heads=2, kv_heads=2), LENGTHS)


def lengths(setting: Setting, tokens: tuple[int, ...]) -> Iterator[Setting]:
    """The setting at several lengths."""
    return (replace(setting, tokens=each) for each in tokens)
