"""Writing with a model that translates: greedily, or along several beams at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer

from headway.data.pairs import END, FIRST, MASK, PADDING, START, batch, encoded
from headway.data.tokenizers import Tokenizer
from headway.torch.seq2seq import Memory, Seq2Seq
from headway.tracing import trace

_AT_ONCE = 64  # sentences


class Translated(NamedTuple):
    """A translation. tokens: without its end. score: its logarithmic probability, divided by the
    length penalty. whole: whether the model ended it; else it is as long as the model's context."""

    tokens: list[int]
    score: float
    whole: bool


class Text(NamedTuple):
    """A translation as text. whole: whether the model ended it."""

    text: str
    tokens: list[int]
    whole: bool


def translate(
    model: Seq2Seq,
    sources: Sequence[Integer[np.ndarray, " _"]],
    *,
    beams: int = 4,
    penalty: float = 1.0,
) -> list[Translated]:
    """The best translation that was found of each source, which ends with END.

    beams: how many beginnings are kept; 1 takes the likeliest word each time. penalty: the length
    penalty ((5 + length) / 6)^penalty of Wu et al. 2016 (equation 14); 0 prefers the short.
    Raises ValueError for no beam and for a source longer than the context.
    """
    if beams < 1:
        raise ValueError(f"there is 1 beam or more: {beams} are not")
    model.eval()
    order = sorted(range(len(sources)), key=lambda place: len(sources[place]))
    found: dict[int, Translated] = {}
    for first in range(0, len(order), _AT_ONCE):
        some = order[first : first + _AT_ONCE]
        with torch.no_grad():
            done = _search(model, [sources[place] for place in some], beams, penalty)
        found |= dict(zip(some, done, strict=True))
    return [found[place] for place in range(len(sources))]


def read(model: Seq2Seq, sources: Sequence[np.ndarray]) -> Memory:
    """The sources through the encoder."""
    device = next(model.parameters()).device
    whole = batch([(source, source) for source in sources])
    source, lengths = torch.from_numpy(whole.source), torch.from_numpy(whole.lengths)
    return model.encode(source.to(device), lengths.to(device))


def _search(
    model: Seq2Seq, sources: list[np.ndarray], beams: int, penalty: float
) -> list[Translated]:
    memory = read(model, sources)
    count, device = len(sources), memory.states.device
    memory = memory[torch.arange(count, device=device).repeat_interleave(beams)]
    state = model.begin(memory)
    scores = torch.full((count, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # at first all beams are one
    written = torch.full((count * beams, 1), START, device=device)
    ended: list[list[Translated]] = [[] for _ in sources]
    for length in range(1, model.config.context + 1):
        logits, state = model.decode(written[:, -1:], memory, state)
        logits = logits[:, -1].float()
        logits[:, [PADDING, START, MASK]] = -torch.inf
        total = scores[..., None] + logits.log_softmax(-1).reshape(count, beams, -1)
        # Each beam ends in one way, so of twice as many candidates enough go on.
        best, place = total.flatten(1).topk(2 * beams)
        rows = place // logits.shape[-1] + beams * torch.arange(count, device=device)[:, None]
        token = place % logits.shape[-1]
        for sentence, at in (token[:, :beams] == END).nonzero().tolist():
            if len(ended[sentence]) < beams and best[sentence, at] > -torch.inf:
                before = written[rows[sentence, at], 1:].tolist()
                score = best[sentence, at].item() / ((5 + length) / 6) ** penalty
                ended[sentence].append(Translated(before, score, True))
        onward = (token == END).byte().argsort(dim=1, stable=True)[:, :beams]
        scores = best.gather(1, onward)
        flat = rows.gather(1, onward).flatten()
        written = torch.cat([written[flat], token.gather(1, onward).flatten()[:, None]], dim=1)
        if all(len(some) >= beams for some in ended):
            break
        state, memory = tuple(each[flat] for each in state), memory[flat]
    cut = written.reshape(count, beams, -1)[:, 0, 1:].tolist()
    return [
        max(some, key=lambda each: each.score) if some else Translated(tokens, -np.inf, False)
        for some, tokens in zip(ended, cut, strict=True)
    ]


def alignment(
    model: Seq2Seq, source: Integer[np.ndarray, " source"], target: Sequence[int]
) -> Float[np.ndarray, "target source"]:
    """How much each token of the target, its end included, looked at each of the source.

    Of the Transformer the mean over the heads of the last layer: of two that were trained on the
    grammar it found 65% of the right words, the first 25% (22 November 2026).
    Raises ValueError for the kinds that have no attention between two sentences.
    """
    if model.config.kind in ("rnn", "encoder"):
        raise ValueError(f"{model.config.kind} does not look back: there is no alignment")
    inputs = torch.tensor([[START, *target]], device=next(model.parameters()).device)
    layer = f"decoder.blocks.{model.config.layers - 1}.cross_attention.weights"
    name = "decoder.attention.weights" if model.config.recurrent else layer
    model.eval()
    with torch.no_grad(), trace(only=name) as steps:
        memory = read(model, [source])
        model.decode(inputs, memory, model.begin(memory))
    weights = steps[name].float()
    if model.config.kind == "bahdanau":  # ([steps,] 1, 1, 1, source)
        return weights.reshape(-1, weights.shape[-1]).numpy(force=True)
    return weights[0].mean(0).numpy(force=True)


def answers(
    model: Seq2Seq, tokenizer: Tokenizer, sentences: Sequence[str], beams: int
) -> list[str]:
    """The translations or, of a model of masked words, the sentences with their words filled in.

    A sentence without "_" has its second word masked.
    """
    if model.config.kind == "encoder":
        gaps = (text if "_" in text else with_gap(text) for text in sentences)
        return [filled(model, tokenizer, text) for text in gaps]
    return [text.text for text in translated(model, tokenizer, sentences, beams)]


def with_gap(sentence: str) -> str:
    """A sentence with "_" in place of its second word."""
    first, *others = sentence.split()
    return " ".join([first, "_", *others[1:]])


def filled(model: Seq2Seq, tokenizer: Tokenizer, sentence: str) -> str:
    """The sentence with the likeliest token for each "_" in brackets.

    A gap takes the space before it with it, as the tokens of words do.
    """
    parts = re.split(r" ?_", sentence)
    row = [int(token) + FIRST for token in tokenizer.encode(parts[0])]
    gaps = []
    for part in parts[1:]:
        gaps.append(len(row))
        row += [MASK, *(int(token) + FIRST for token in tokenizer.encode(part))]
    source = torch.tensor([[*row, END]], device=next(model.parameters()).device)
    model.eval()
    with torch.no_grad():
        logits = model(source, torch.tensor([source.shape[1]]))[0, gaps]
    words_ = [
        tokenizer.decode([int(best) - FIRST]) for best in logits[:, FIRST:].argmax(-1) + FIRST
    ]
    found = [parts[0]]
    for word, part in zip(words_, parts[1:], strict=True):
        space = word[: len(word) - len(word.lstrip())]
        found += [f"{space}[{word.strip()}]", part]
    return "".join(found)


def translated(
    model: Seq2Seq, tokenizer: Tokenizer, sources: Sequence[str], beams: int, penalty: float = 1.0
) -> list[Text]:
    """The translations of sentences."""
    rows = [encoded(source, tokenizer) for source in sources]
    return [
        Text(tokenizer.decode([token - FIRST for token in each.tokens]), each.tokens, each.whole)
        for each in translate(model, rows, beams=beams, penalty=penalty)
    ]
