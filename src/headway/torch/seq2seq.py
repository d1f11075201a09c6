"""Encoder-decoder models in PyTorch; see `models.seq2seq` for the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from headway.attention.dropout import drop
from headway.attention.masks import Mask, padding
from headway.attention.positions import sinusoidal
from headway.attention.spec import DEFAULT, Spec, fold
from headway.models.seq2seq import Seq2SeqConfig, initial
from headway.torch.layers import (
    CAUSAL,
    MLP,
    AdditiveAttention,
    Cache,
    CrossAttention,
    MultiHeadAttention,
    ProductAttention,
)
from headway.tracing import scope, tap

Words = Float[Tensor, "batch tokens width"]
# The state of a decoder between words: tensors or caches with one row per sentence.
State = Sequence[Any]
Caches = tuple[Cache | None, Cache | None]  # of a layer of the decoder
_CELLS = {"gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}


@dataclass(frozen=True)
class Memory:
    """The output of the encoder.

    states: one per token. lengths: the number of tokens of each source, without padding; on the
    CPU they need no wait for the device.
    last: the last hidden state of a recurrent encoder and, for an LSTM, its last cell state; those
    of the backward direction if the encoder is bidirectional.
    """

    states: Float[Tensor, "batch source width"]
    lengths: Int[Tensor, " batch"]
    last: tuple[Tensor, ...] = ()

    @property
    def mask(self) -> Mask | None:
        """The mask of the padding; None if there is no padding."""
        is_full = bool((self.lengths == self.states.shape[1]).all())
        return None if is_full else padding(self.lengths.to(self.states.device, non_blocking=True))

    def __getitem__(self, rows: Int[Tensor, " rows"]) -> Memory:
        """Return the memory of these rows."""
        last = tuple(state[rows] for state in self.last)
        return Memory(self.states[rows], self.lengths[rows.to(self.lengths.device)], last)


@final
class Seq2Seq(nn.Module):
    """An encoder, and a decoder if the kind has one; see `Seq2SeqConfig`.

    seed: the initial values depend only on it and on the parameters' names; PyTorch's global random
    state is not changed.
    """

    def __init__(self, config: Seq2SeqConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # the layers' random values are replaced
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            self.encoder: RecurrentEncoder | TransformerEncoder = (
                RecurrentEncoder(config) if config.recurrent else TransformerEncoder(config)
            )
            if config.kind != "encoder":
                self.decoder: Any = _DECODERS[config.kind](config)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(initial(name, tuple(parameter.shape), seed)))

    def forward(
        self,
        source: Int[Tensor, "batch source"],
        lengths: Int[Tensor, " batch"],
        inputs: Int[Tensor, "batch target"] | None = None,
        spec: Spec = DEFAULT,
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Return the logits of the next token after each input token.

        The kind `encoder` has no inputs: return the logits of the original token at every position
        of the source, masked or not. lengths: the number of tokens of each source, without padding.
        spec: the seed of dropout while training. Raises ValueError for a sentence that is longer
        than the context.
        """
        memory = self.encode(source, lengths, fold(spec, 0))
        if inputs is None:
            return self._logits(memory.states)
        state = self.begin(memory) if self.config.recurrent else ()  # no caches
        return self.decode(inputs, memory, state, fold(spec, 1))[0]

    def encode(
        self,
        source: Int[Tensor, "batch source"],
        lengths: Int[Tensor, " batch"],
        spec: Spec = DEFAULT,
    ) -> Memory:
        """Return the memory of the sources."""
        with scope("encoder"):
            spec = spec._replace(dropout=self._rate)
            return self.encoder(self._embedded(source, 0, spec), lengths, spec)

    def begin(self, memory: Memory) -> State:
        """Return the state of the decoder before the first word."""
        return self.decoder.begin(memory)

    def decode(
        self,
        inputs: Int[Tensor, "batch target"],
        memory: Memory,
        state: State,
        spec: Spec = DEFAULT,
    ) -> tuple[Float[Tensor, "batch target vocabulary"], State]:
        """Return the logits of the next word after each input, and the new state of the decoder.

        state: the state of the decoder after the words that precede the inputs.
        """
        with scope("decoder"):
            before = 0 if self.config.recurrent else self.decoder.written(state)
            spec = spec._replace(dropout=self._rate)
            x = self._embedded(inputs, before, spec)
            features, state = self.decoder(x, memory, state, spec)
        return self._logits(features), state

    @property
    def _rate(self) -> float:
        return self.config.dropout if self.training else 0.0

    def _embedded(self, tokens: Tensor, before: int, spec: Spec) -> Words:
        end = before + tokens.shape[-1]
        if end > self.config.context:
            raise ValueError(f"{end} tokens do not fit a context of {self.config.context}")
        x = self.embedding(tokens)
        if not self.config.recurrent:
            positions = torch.arange(before, end, device=x.device)
            x = x * self.config.width**0.5 + sinusoidal(positions, self.config.width, like=x)
        return tap("embedded", drop(x, fold(spec, 0)))

    def _logits(self, features: Words) -> Float[Tensor, "batch tokens vocabulary"]:
        return tap("logits", nn.functional.linear(features, self.embedding.weight))


@final
class RecurrentEncoder(nn.Module):
    """A recurrent encoder, which is bidirectional if the decoder attends to its states."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        rnn, _ = _CELLS[config.cell]
        width, state = config.width, _state_width(config)
        self.rnn = rnn(width, state, batch_first=True, bidirectional=state < width)

    def forward(self, x: Words, lengths: Int[Tensor, " batch"], spec: Spec) -> Memory:
        """Return the memory of the tokens without the padding."""
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.rnn(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        parts = last if isinstance(last, tuple) else (last,)
        return Memory(tap("states", padded), lengths, tuple(part[-1] for part in parts))


@final
class FirstState(nn.Module):
    """The initial state of the decoder, from the last states h and c of the encoder.

    The hidden state is tanh(W h); the cell state of an LSTM is W c.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        d_in = _state_width(config)
        self.hidden = nn.Linear(d_in, config.width)
        if config.cell == "lstm":
            self.cell = nn.Linear(d_in, config.width)

    def forward(self, memory: Memory) -> tuple[Tensor, ...]:
        """Return (hidden,), or (hidden, cell) for an LSTM."""
        hidden = torch.tanh(self.hidden(memory.last[0]))
        return (hidden,) if len(memory.last) == 1 else (hidden, self.cell(memory.last[1]))


@final
class BottleneckDecoder(nn.Module):
    """A decoder without attention: it depends on the source only through its initial state."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        rnn, _ = _CELLS[config.cell]
        self.initial = FirstState(config)
        self.rnn = rnn(config.width, config.width, batch_first=True)

    def begin(self, memory: Memory) -> State:
        return self.initial(memory)

    def forward(self, x: Words, memory: Memory, state: State, spec: Spec) -> tuple[Words, State]:
        states, state = _run(self.rnn, x, state)
        return drop(states, fold(spec, 1)), state


@final
class BahdanauDecoder(nn.Module):
    """A decoder that attends with its previous state before each step.

    c_i = attention(s_{i-1}, h), s_i = cell([y_{i-1}; c_i], s_{i-1}); a maxout layer predicts the
    word from s_i, y_{i-1} and c_i (Bahdanau et al. 2015, equations 4 to 6 and appendix A.2.2; the
    gates are PyTorch's).
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        _, cell = _CELLS[config.cell]
        width = config.width
        self.initial = FirstState(config)
        self.attention = AdditiveAttention(width)
        self.rnn = cell(2 * width, width)
        self.output = nn.Linear(3 * width, 2 * width)

    def begin(self, memory: Memory) -> State:
        return (self.attention.keys(memory.states), *self.initial(memory))

    def forward(self, x: Words, memory: Memory, state: State, spec: Spec) -> tuple[Words, State]:
        (keys, *hidden), padded = state, Spec(mask=memory.mask)
        states, contexts = [], []
        for step in range(x.shape[1]):
            with scope("attention"):
                context = self.attention(hidden[0][:, None], keys, memory.states, padded)[:, 0]
            before = hidden[0] if len(hidden) == 1 else tuple(hidden)
            after = self.rnn(torch.cat([x[:, step], context], dim=-1), before)
            hidden = [*after] if isinstance(after, tuple) else [after]
            states.append(hidden[0])
            contexts.append(context)
        joined = torch.cat([torch.stack(states, 1), x, torch.stack(contexts, 1)], dim=-1)
        features = self.output(joined).unflatten(-1, (-1, 2)).amax(-1)
        return drop(features, fold(spec, 1)), (keys, *hidden)


@final
class LuongDecoder(nn.Module):
    """A decoder that attends with the new state after each step: tanh(W [c; s]).

    Luong et al. 2015, equation 5, global attention. Without input feeding, the cell does not depend
    on the contexts: it processes all words first, then all their states attend in one call.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        rnn, _ = _CELLS[config.cell]
        width = config.width
        self.initial = FirstState(config)
        self.rnn = rnn(width, width, batch_first=True)
        self.attention = ProductAttention(width, general=config.score == "general")
        self.output = nn.Linear(2 * width, width)

    def begin(self, memory: Memory) -> State:
        return self.initial(memory)

    def forward(self, x: Words, memory: Memory, state: State, spec: Spec) -> tuple[Words, State]:
        states, state = _run(self.rnn, x, state)
        with scope("attention"):
            context = self.attention(states, memory.states, Spec(mask=memory.mask))
        features = torch.tanh(self.output(torch.cat([context, states], dim=-1)))
        return drop(features, fold(spec, 1)), state


@final
class TransformerEncoder(nn.Module):
    """Layers in which every token of the source attends to all others."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))

    def forward(self, x: Words, lengths: Int[Tensor, " batch"], spec: Spec) -> Memory:
        mask = Memory(x, lengths).mask
        for number, block in enumerate(self.blocks):
            with scope(f"blocks.{number}"):
                x = block(x, mask, fold(spec, 1 + number))
        return Memory(tap("states", x), lengths)


@final
class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): post-norm (Vaswani et al. 2017)."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.self_attention = _self_attention(config, DEFAULT)
        self.self_attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config.width, config.hidden, "relu", linear_bias=True)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x: Words, mask: Mask | None, spec: Spec = DEFAULT) -> Words:
        """Return the updated tokens; spec: the rate and seed of the dropout of each update."""
        with scope("self_attention"):
            update = self.self_attention(x, Spec(mask=mask))
        x = tap("after_attention", self.self_attention_norm(x + drop(update, fold(spec, 0))))
        with scope("mlp"):
            update = self.mlp(x)
        return tap("after_mlp", self.mlp_norm(x + drop(update, fold(spec, 1))))


@final
class TransformerDecoder(nn.Module):
    """Layers in which a token attends to itself, to earlier tokens, and to all source tokens."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.context = config.context
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))

    def begin(self, memory: Memory) -> State:
        """Return two empty caches per layer: for the target, and for the source.

        `forward` also accepts an empty state: it then uses no caches.
        """
        sizes = (self.context, memory.states.shape[1])
        return [Cache(size) for _ in self.blocks for size in sizes]

    def written(self, state: State) -> int:
        """The number of preceding tokens."""
        return state[0].length if state else 0

    def forward(self, x: Words, memory: Memory, state: State, spec: Spec) -> tuple[Words, State]:
        mask = memory.mask
        caches = list(zip(state[::2], state[1::2], strict=True))
        caches = caches or [(None, None)] * len(self.blocks)
        for number, (block, pair) in enumerate(zip(self.blocks, caches, strict=True)):
            with scope(f"blocks.{number}"):
                x = block(x, memory, mask, fold(spec, 1 + number), pair)
        return x, state


@final
class DecoderBlock(nn.Module):
    """norm(x + attention(x)), norm(x + attention(x, memory)), norm(x + mlp(x))."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attention = _self_attention(config, CAUSAL)
        self.self_attention_norm = nn.LayerNorm(width, eps=config.eps)
        self.cross_attention = CrossAttention(width, heads=config.heads)
        self.cross_attention_norm = nn.LayerNorm(width, eps=config.eps)
        self.mlp = MLP(width, config.hidden, "relu", linear_bias=True)
        self.mlp_norm = nn.LayerNorm(width, eps=config.eps)

    def forward(
        self, x: Words, memory: Memory, mask: Mask | None, spec: Spec, caches: Caches
    ) -> Words:
        """Return the updated tokens.

        mask: the padding mask of the memory. spec: as in `EncoderBlock`. caches: the keys and
        values of the preceding target tokens, and those of the memory.
        """
        target_cache, source_cache = caches
        with scope("self_attention"):
            update = self.self_attention(x, cache=target_cache)
        x = tap("after_self_attention", self.self_attention_norm(x + drop(update, fold(spec, 0))))
        with scope("cross_attention"):
            update = self.cross_attention(x, memory.states, Spec(mask=mask), cache=source_cache)
        x = self.cross_attention_norm(x + drop(update, fold(spec, 1)))
        x = tap("after_cross_attention", x)
        with scope("mlp"):
            update = self.mlp(x)
        return tap("after_mlp", self.mlp_norm(x + drop(update, fold(spec, 2))))


def _state_width(config: Seq2SeqConfig) -> int:
    """Return the width of one direction of the encoder, which has two unless the kind is "rnn"."""
    return config.width if config.kind == "rnn" else config.width // 2


def _run(rnn: nn.Module, x: Words, state: State) -> tuple[Words, State]:
    """Run a recurrent network from a state; return its states after every word, and the last."""
    first = tuple(part[None] for part in state)
    states, last = rnn(x, first if len(first) > 1 else first[0])
    parts = last if isinstance(last, tuple) else (last,)
    return tap("states", states), tuple(part[0] for part in parts)


def _self_attention(config: Seq2SeqConfig, spec: Spec) -> MultiHeadAttention:
    return MultiHeadAttention(config.width, heads=config.heads, linear_bias=True, spec=spec)


_DECODERS = {
    "rnn": BottleneckDecoder,
    "bahdanau": BahdanauDecoder,
    "luong": LuongDecoder,
    "transformer": TransformerDecoder,
}
