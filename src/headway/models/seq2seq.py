"""The config of sequence-to-sequence models, and the names and shapes of their parameters.

There are four kinds of translation models, each of which solves a problem of the previous one:

rnn          the decoder gets only the last state of the encoder (Sutskever et al. 2014; Cho et al.
             2014): one vector for sentences of any length
bahdanau     for each word the decoder attends to all states of the encoder (Bahdanau et al. 2015)
luong        the same with cheaper scores, after the decoder's step (Luong et al. 2015)
transformer  only attention, no recurrence (Vaswani et al. 2017)

The kind `encoder` is the Transformer's encoder only; it predicts masked words (Devlin et al. 2019,
BERT). This module is independent of the engine.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from headway.models.parameters import Shape, at_least_one, generator, linear, norm, one_of

KINDS = ("rnn", "bahdanau", "luong", "transformer", "encoder")
_GATES = {"gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The config of a sequence-to-sequence model. Raises ValueError for invalid settings.

    Attributes
    ----------
    kind
        rnn: the decoder gets the encoder's last state. bahdanau, luong: the decoder attends to all
        states of the encoder. transformer: no recurrence. encoder: predicts masked words.
    vocabulary
        Number of different tokens in both languages together, including the special tokens. Both
        languages share one embedding, which is also the output layer (Press and Wolf 2017).
    context
        Largest number of tokens in a sentence, including the token for its end.
    width
        Features of a token and of a state.
    layers
        Number of layers of the Transformer's encoder, and also of its decoder.
    heads
        Number of heads of the Transformer's attention.
    d_mlp
        Features inside the Transformer's MLP; by default 4 times the width.
    cell
        Cell of the recurrent kinds: gru or lstm.
    score
        Score function of luong's attention: dot or general.
    dropout
        Probability that a feature is dropped in training.
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
        one_of("kind", self.kind, KINDS)
        one_of("cell", self.cell, ("gru", "lstm"))
        one_of("score", self.score, ("dot", "general"))
        at_least_one(self, "vocabulary", "context", "width", "layers", "heads", "d_mlp")
        if self.width % 2:
            raise ValueError(f"width must be even (got {self.width})")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if self.recurrent and (self.layers, self.heads, self.d_mlp) != (1, 1, None):
            raise ValueError(f"{self.kind} does not support layers, heads and d_mlp; remove them")
        if not self.recurrent and self.cell != "gru":
            raise ValueError(f"{self.kind} does not support cell={self.cell!r}; remove it")
        if self.kind != "luong" and self.score != "general":
            raise ValueError(f"{self.kind} does not support score={self.score!r}; only luong does")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1 (got {self.dropout})")

    @property
    def recurrent(self) -> bool:
        """Whether the model is recurrent: it processes one word at a time, with a state."""
        return self.kind not in ("transformer", "encoder")

    @property
    def hidden(self) -> int:
        """The width inside the MLP."""
        return 4 * self.width if self.d_mlp is None else self.d_mlp


def shapes(config: Seq2SeqConfig) -> dict[str, Shape]:
    """The table of parameters: name -> shape. Matrices are (d_out, d_in), except W_* (d_in, d_out).

    Recurrent cells use PyTorch's names.
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
    """The initial value of a parameter, which depends only on its name and the seed.

    Embeddings have a norm of about 1 (the Transformer multiplies them by sqrt(width)). Matrices are
    normal with the variance of Glorot and Bengio 2010. The state-to-state matrices of recurrent
    cells are orthogonal for each gate (Saxe et al. 2014). Biases are 0 and norms 1.
    """
    if "bias" in name:
        return np.zeros(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    random = generator(name, seed)
    if "weight_hh" in name:
        gates = random.standard_normal((shape[0] // shape[1], shape[1], shape[1]))
        orthogonal = np.asarray(np.linalg.qr(gates).Q, dtype=np.float32)
        return orthogonal.reshape(shape)
    variance = 1 / shape[1] if name == "embedding.weight" else 2 / (shape[0] + shape[-1])
    values = random.standard_normal(shape) * math.sqrt(variance)
    return values.astype(np.float32)


def _block(name: str, attentions: tuple[str, ...], config: Seq2SeqConfig) -> dict[str, Shape]:
    width, hidden = config.width, config.hidden
    table: dict[str, Shape] = {}
    for attention in attentions:
        for part in ("q", "k", "v", "output"):
            table |= linear(f"{name}.{attention}.{part}", width, width)
        table |= norm(f"{name}.{attention}_norm", width)
    table |= linear(f"{name}.mlp.up", width, hidden) | linear(f"{name}.mlp.down", hidden, width)
    return table | norm(f"{name}.mlp_norm", width)


def _recurrent(config: Seq2SeqConfig) -> dict[str, Shape]:
    width = config.width
    attends = config.kind != "rnn"
    table: dict[str, Shape] = {}
    last = width // 2 if attends else width
    for direction in ("", "_reverse") if attends else ("",):
        table |= _cell("encoder.rnn", f"_l0{direction}", width, last, config)
    for start in ("hidden", "cell") if config.cell == "lstm" else ("hidden",):
        table |= linear(f"decoder.initial.{start}", last, width)
    if config.kind == "bahdanau":
        table |= _cell("decoder.rnn", "", 2 * width, width, config)
        table |= {f"decoder.attention.W_{part}": (width, width) for part in ("query", "key")}
        table["decoder.attention.v"] = (width,)
        return table | linear("decoder.output", 3 * width, 2 * width)
    table |= _cell("decoder.rnn", "_l0", width, width, config)
    if config.kind == "luong":
        if config.score == "general":
            table["decoder.attention.W_query"] = (width, width)
        table |= linear("decoder.output", 2 * width, width)
    return table


def _cell(name: str, suffix: str, d_in: int, state: int, config: Seq2SeqConfig) -> dict[str, Shape]:
    rows = _GATES[config.cell] * state
    return {
        f"{name}.weight_ih{suffix}": (rows, d_in),
        f"{name}.weight_hh{suffix}": (rows, state),
        f"{name}.bias_ih{suffix}": (rows,),
        f"{name}.bias_hh{suffix}": (rows,),
    }
