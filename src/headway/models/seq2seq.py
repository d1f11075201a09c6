"""Models that read one sentence and write another: the sizes, the names and the first values of
their parameters; no engine.

Four kinds, each the answer to what failed in the one before:

rnn          the encoder's last state is all that the decoder gets (Sutskever et al. 2014; Cho et
             al. 2014), one vector for sentences of any length
bahdanau     for each word the decoder looks at all states of the encoder (Bahdanau et al. 2015)
luong        the same with cheaper scores, after the decoder's step (Luong et al. 2015)
transformer  no recurrence, attention alone (Vaswani et al. 2017)

and `encoder`, the Transformer's encoder by itself, which fills in words that are masked (Devlin et
al. 2019, BERT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np
from jaxtyping import Float

Shape = tuple[int, ...]

KINDS = ("rnn", "bahdanau", "luong", "transformer", "encoder")
_CHOICES = {"kind": KINDS, "cell": ("gru", "lstm"), "score": ("dot", "general")}
_GATES = {"gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The sizes and choices. Raises ValueError for those that do not fit together.

    Attributes
    ----------
    kind
        rnn: the decoder gets the encoder's last state; bahdanau or luong: it attends to all of
        them; transformer; or encoder: fills in masked words.
    vocabulary
        Number of different tokens, of both languages together, with the special tokens. Both share
        one embedding, which is the output layer too (Press and Wolf 2017).
    context
        Tokens of a sentence at most, with its end.
    width
        Features of a token and of a state.
    layers
        Layers of the Transformer's encoder and of its decoder.
    heads
        Heads of the Transformer's attention.
    d_mlp
        Features inside the Transformer's MLP; by default 4 times the width.
    cell
        Cell of the recurrent kinds.
    score
        Score of luong's attention.
    dropout
        Share of the features that are dropped in training.
    eps
        Number that the norms add to the variance.
    """

    kind: Literal["rnn", "bahdanau", "luong", "transformer", "encoder"]
    vocabulary: int
    context: int
    width: int
    layers: int = 1
    heads: int = 1
    d_mlp: int | None = None
    cell: Literal["gru", "lstm"] = "gru"
    score: Literal["dot", "general"] = "general"
    dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is one of {', '.join(allowed)}: {getattr(self, name)!r} is not"
                )
        for name in ("vocabulary", "context", "width", "layers", "heads", "d_mlp"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more: {getattr(self, name)} is not")
        if self.width % 2:
            raise ValueError(f"a width is even, for two directions or sines: {self.width} is odd")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.recurrent and (self.layers, self.heads, self.d_mlp) != (1, 1, None):
            raise ValueError(f"{self.kind} has one layer, no heads and no MLP: leave those out")
        if not self.recurrent and self.cell != "gru":
            raise ValueError(f"{self.kind} has no recurrent cell: leave {self.cell!r} out")
        if self.kind != "luong" and self.score != "general":
            raise ValueError(f"the score {self.score!r} is luong's: leave it out of {self.kind}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share from 0 to below 1: {self.dropout} is not")

    @property
    def recurrent(self) -> bool:
        """Whether it reads and writes word by word, from a state."""
        return self.kind not in ("transformer", "encoder")

    @property
    def hidden(self) -> int:
        """The width inside the MLP."""
        return 4 * self.width if self.d_mlp is None else self.d_mlp


def shapes(config: Seq2SeqConfig) -> dict[str, Shape]:
    """The table of parameters: name -> shape; matrices are (d_out, d_in), but for W_*.

    The names in recurrent cells are PyTorch's.
    """
    table: dict[str, Shape] = {"embedding.weight": (config.vocabulary, config.width)}
    if config.recurrent:
        return table | _recurrent(config)
    for layer in range(config.layers):
        table |= _block(f"encoder.blocks.{layer}", ("self_attention",), config)
    for layer in range(config.layers if config.kind == "transformer" else 0):
        table |= _block(f"decoder.blocks.{layer}", ("self_attention", "cross_attention"), config)
    return table


def initial(name: str, shape: Shape, seed: int) -> Float[np.ndarray, "..."]:
    """A parameter's first value, a function of the seed and its name: the same in every engine.

    Embeddings are as long as 1 (and multiplied by sqrt(width) where the Transformer reads them);
    matrices are normal with the variance of Glorot and Bengio 2010, a recurrent cell's from state
    to state orthogonal gate by gate (Saxe et al. 2014); biases 0, norms 1.
    """
    if "bias" in name:
        return np.zeros(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    generator = np.random.Generator(np.random.Philox(key=[seed, crc32(name.encode())]))
    if "weight_hh" in name:
        gates = generator.standard_normal((shape[0] // shape[1], shape[1], shape[1]))
        orthogonal = np.asarray(np.linalg.qr(gates).Q, dtype=np.float32)
        return orthogonal.reshape(shape)
    variance = 1 / shape[1] if name == "embedding.weight" else 2 / (shape[0] + shape[-1])
    drawn = generator.standard_normal(shape) * math.sqrt(variance)
    return drawn.astype(np.float32)


def _block(name: str, attentions: tuple[str, ...], config: Seq2SeqConfig) -> dict[str, Shape]:
    width, hidden = config.width, config.hidden
    table: dict[str, Shape] = {}
    for attention in attentions:
        for part in ("q", "k", "v", "output"):
            table[f"{name}.{attention}.{part}.weight"] = (width, width)
            table[f"{name}.{attention}.{part}.bias"] = (width,)
        table |= _norm(f"{name}.{attention}_norm", config)
    table |= {f"{name}.mlp.up.weight": (hidden, width), f"{name}.mlp.up.bias": (hidden,)}
    table |= {f"{name}.mlp.down.weight": (width, hidden), f"{name}.mlp.down.bias": (width,)}
    return table | _norm(f"{name}.mlp_norm", config)


def _norm(name: str, config: Seq2SeqConfig) -> dict[str, Shape]:
    return {f"{name}.weight": (config.width,), f"{name}.bias": (config.width,)}


def _recurrent(config: Seq2SeqConfig) -> dict[str, Shape]:
    width = config.width
    attends = config.kind != "rnn"
    table: dict[str, Shape] = {}
    last = width // 2 if attends else width
    for direction in ("", "_reverse") if attends else ("",):
        table |= _cell("encoder.rnn", f"_l0{direction}", width, last, config)
    for start in ("hidden", "cell") if config.cell == "lstm" else ("hidden",):
        name = f"decoder.initial.{start}"
        table |= {f"{name}.weight": (width, last), f"{name}.bias": (width,)}
    if config.kind == "bahdanau":
        table |= _cell("decoder.rnn", "", 2 * width, width, config)
        table |= {f"decoder.attention.W_{part}": (width, width) for part in ("query", "key")}
        table["decoder.attention.v"] = (width,)
        table |= {
            "decoder.output.weight": (2 * width, 3 * width),
            "decoder.output.bias": (2 * width,),
        }
        return table
    table |= _cell("decoder.rnn", "_l0", width, width, config)
    if config.kind == "luong":
        if config.score == "general":
            table["decoder.attention.W_query"] = (width, width)
        table |= {"decoder.output.weight": (width, 2 * width), "decoder.output.bias": (width,)}
    return table


def _cell(name: str, suffix: str, d_in: int, state: int, config: Seq2SeqConfig) -> dict[str, Shape]:
    rows = _GATES[config.cell] * state
    return {
        f"{name}.weight_ih{suffix}": (rows, d_in),
        f"{name}.weight_hh{suffix}": (rows, state),
        f"{name}.bias_ih{suffix}": (rows,),
        f"{name}.bias_hh{suffix}": (rows,),
    }
