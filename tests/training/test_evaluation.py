"""The loss on a text with a sliding window: every token is predicted once, in both engines."""

from math import log

import numpy as np
import pytest
import torch

from gpts import config
from headway.data.tokenizers import Tokenizer
from headway.engines import engine_named
from headway.jax import gpt as jax_gpt
from headway.torch import GPT
from headway.training.evaluation import evaluate

TEXT = "héllo wörld, " * 7
TOKENIZER = Tokenizer.utf8_bytes()


def engine_and_model(name):
    of = config(vocabulary=256, context=12)
    if name == "torch":
        return engine_named(name), GPT(of).eval()
    return engine_named(name), jax_gpt.Model(jax_gpt.init(of, 0), of)


def alone(model, tokens, context, stride):
    """The same by definition: predict each token from the last window that it is new in."""
    total, last = 0.0, len(tokens) - 1
    starts = [*range(0, last - context, stride), last - context]
    for place in range(1, len(tokens)):
        start = next(start for start in starts if place <= start + context)
        with torch.no_grad():
            logits = model(torch.tensor(tokens[None, start:place]))[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[tokens[place]])
    return total


@pytest.mark.parametrize("stride", [1, 5, 12])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_loss_is_that_of_the_definition(name, stride):
    engine, model = engine_and_model(name)
    shown = []
    result = evaluate(
        engine, model, TOKENIZER, TEXT, context=12, stride=stride, show=lambda *n: shown.append(n)
    )
    tokens = TOKENIZER.encode(TEXT)
    expected = alone(engine_and_model("torch")[1], tokens, 12, stride)
    assert result.nats == pytest.approx(expected, rel=1e-5)
    assert result.tokens == len(tokens) - 1 == sum(more for more, _ in shown)
    assert result.size == len(TEXT.encode()) - 1
    assert result.loss == pytest.approx(expected / result.tokens, rel=1e-5)
    assert result.perplexity == pytest.approx(np.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(expected / log(2) / result.size, rel=1e-5)


def test_with_bos_all_bytes_count():
    engine, model = engine_and_model("torch")
    tokenizer = Tokenizer(TOKENIZER._backend, bos=7, before=[7])
    result = evaluate(engine, model, tokenizer, TEXT, context=12)
    assert (result.tokens, result.size) == (len(TEXT.encode()), len(TEXT.encode()))
    assert result.stride == 6
    tokens = np.array([7, *TOKENIZER.encode(TEXT)])
    assert result.nats == pytest.approx(alone(model, tokens, 12, 6), rel=1e-5)


def test_short_texts_and_bad_strides():
    engine, model = engine_and_model("torch")
    assert evaluate(engine, model, TOKENIZER, "abc", context=12).context == 2
    for text in ("", "a"):
        with pytest.raises(ValueError, match="the text is too short; it must have at least 2"):
            evaluate(engine, model, TOKENIZER, text, context=12)
    for stride in (0, 13):
        with pytest.raises(ValueError, match=rf"stride must be from 1 .* 12 \(got {stride}\)"):
            evaluate(engine, model, TOKENIZER, TEXT, context=12, stride=stride)
