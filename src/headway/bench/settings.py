"""Settings: each gives one table of `headway bench`; `plan` has the default ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from headway.attention.masks import Mask, both, causal, window

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
SEED = 0
BACKWARD = 2.5  # the cost of a backward pass in forward passes (Dao 2023, section 4.1)


@dataclass(frozen=True)
class Setting:
    """The inputs of one table; by default the shape of the book. Raises ValueError if invalid.

    window: a query attends to this many keys, itself included; implies causal.
    projections: the layer with the projections to queries, keys and values, and W_output.
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
                raise ValueError(f"{name} must be >= 1 (got {getattr(self, name)})")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads (got {self.kv_heads} and {self.heads})")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)} (got {self.dtype!r})")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be >= 1 (got {self.window})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1 (got {self.dropout})")

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Features of the keys of a token, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def mask(self) -> Mask | None:
        """The mask."""
        mask = causal if self.causal else None
        return mask if self.window is None else both(mask, window(self.window))

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of `attend`."""
        options: dict[str, Any] = {"causal": self.causal, "window": self.window}
        return options | ({"dropout": self.dropout, "seed": SEED} if self.dropout else {})

    @property
    def cells(self) -> int:
        """The number of allowed pairs of query and key, per head and batch row."""
        if self.window is not None:
            keys = min(self.window, self.tokens)
            return keys * self.tokens - keys * (keys - 1) // 2
        return self.tokens * (self.tokens + 1) // 2 if self.causal else self.tokens**2

    @property
    def flops(self) -> float:
        """The necessary floating-point operations of one call.

        Attention: 4 * head_dim per allowed pair, and BACKWARD times as many backward.
        Projections: 2 * d_in * d_out per token, and twice as many backward.
        """
        attention = 4.0 * self.batch * self.heads * self.cells * self.head_dim
        projections = 2.0 * self.batch * self.tokens * self._weights * self.projections
        if self.backward:
            return attention * (1 + BACKWARD) + projections * 3
        return attention + projections

    @property
    def _weights(self) -> int:
        """The number of weights of the four projections."""
        return 2 * self.width * (self.width + self.kv_width)

    @property
    def numbers(self) -> int:
        """How many numbers the inputs and the output of a call have."""
        tokens = self.batch * self.tokens
        memory = self._weights if self.projections else 2 * tokens * self.kv_width
        return 2 * tokens * self.width + memory

    @property
    def bytes(self) -> int:
        """The necessary memory traffic of a call: inputs, outputs and gradients, each once."""
        return self.numbers * (2 if self.backward else 1) * DTYPES[self.dtype]

    def __str__(self) -> str:
        return self.title(f"{self.tokens:,} tokens")

    def title(self, length: str = "") -> str:
        """Return a description. length: of the texts, in words."""
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
    """Yield the default settings: the shape of the book, variants with one text, and a sweep of
    lengths."""
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
    """Return the setting with several lengths."""
    return (replace(setting, tokens=count) for count in tokens)
