"""Exercise 14: a whole GPT on one's own text."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headway.check import diagnose
from headway.check.modules import is_module
from headway.check.suspects.steps import Array
from headway.data.corpora import manual, read_file
from headway.learn.answer import Answer, kind_of
from headway.learn.grades import Wrong

LENGTH = 64  # tokens of a text that the model is called with
TEXTS = 1000  # at most
FAR = 16  # the model must see tokens that are this far back
SHORTEST = 50_000  # characters of a text


def grade(answer: Answer) -> str:
    """Raise `Wrong` if the model is wrong; return a remark with its loss."""
    tokens, vocabulary = _tokens(answer)
    cut = len(tokens) * 9 // 10
    training, held_out = tokens[:cut], tokens[cut:]
    answer = replace(answer, libraries=answer.libraries[:1])  # do not train again after an error
    model = answer.run(training, vocabulary)
    if not callable(model):
        raise Wrong(
            "no-model",
            f"train returned {kind_of(model)}. Return the trained model: it is called as "
            "model(tokens).",
            look=r"^return",
        )
    if is_module(model):
        model.eval()
    texts = held_out[: len(held_out) // LENGTH * LENGTH].reshape((-1, LENGTH))
    texts = texts[:: -(-len(texts) // TEXTS)]
    few = _logits(answer, model, texts[:8], vocabulary)
    _check_structure(answer, model, texts[:8], vocabulary, few)
    logits = np.concatenate(
        [_logits(answer, model, texts[i : i + 64], vocabulary) for i in range(0, len(texts), 64)]
    )
    return _check_loss(answer, model, texts, logits, training, held_out)


def _tokens(answer: Answer) -> tuple[Array, int]:
    """Return the characters of the learner's text as numbers, and how many different ones."""
    code = getattr(answer.entry, "__code__", None)
    file = Path(code.co_filename).with_name("text.txt") if code else Path("text.txt")
    try:
        text = read_file(file) if file.is_file() else manual()
    except ValueError as error:
        raise Wrong("text", f"The text cannot be read: {error}.") from None
    if len(text) < SHORTEST:
        raise Wrong(
            "text",
            f"text.txt has {len(text):,} characters, but at least {SHORTEST:,} are needed. Add "
            "text, or remove the file: then the exercise uses the Python manual.",
        )
    characters, tokens = np.unique([*text], return_inverse=True)
    return tokens.astype(np.int64), len(characters)


def _logits(answer: Answer, model: Any, texts: Array, vocabulary: int) -> Array:
    torch = sys.modules.get("torch")
    with torch.no_grad() if torch else nullcontext():
        shape = (*texts.shape, vocabulary)
        logits = answer.call(texts, of=model, shape=shape)
    if logits.shape != shape:
        raise Wrong(
            "shape",
            f"For tokens of the shape {texts.shape} the model returned {logits.shape}, but it must "
            f"return logits of the shape {shape}: one for each token and each character.",
            look=r"return",
        )
    if not np.isfinite(logits).all():
        raise Wrong(
            "nan",
            "The logits contain NaN or infinity. Try a smaller learning rate, and look for rows of "
            "scores that are all -inf.",
            look=r"lr|inf|mask",
        )
    return logits


def _check_structure(
    answer: Answer, model: Any, texts: Array, vocabulary: int, logits: Array
) -> None:
    def changes(position: int, *changed: int) -> bool:
        """Whether logits at a position change if tokens at other positions do."""
        others = texts.copy()
        others[:, list(changed)] = (others[:, list(changed)] + 1) % vocabulary
        result = _logits(answer, model, others, vocabulary)[:, position]
        return bool(np.abs(result - logits[:, position]).max() > 1e-5)

    if changes(LENGTH - 1):
        raise Wrong(
            "random",
            "Two calls with the same tokens give different logits. Turn dropout off in evaluation: "
            "dropout(..., training=self.training).",
            look=r"dropout|rand",
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=-1), 1, atol=1e-3):
        raise Wrong(
            "probabilities",
            "The model returns probabilities, not logits. Return the output of the last layer: "
            "cross_entropy applies the softmax itself.",
            look=r"softmax",
        )
    finding = diagnose(
        model, kind="model", vocabulary=vocabulary, engine=answer.library.name, only=["future"]
    ).findings[0]
    if finding.verdict == "fail":
        raise Wrong(
            "future",
            f"The model sees the token that it must predict ({finding.diagnosis}). Its loss means "
            "nothing then. Use a causal mask: token i attends to tokens 0 to i.",
            look=r"mask|tril|triu|causal|softmax",
        )
    last = LENGTH - 1
    if not changes(last, *range(LENGTH)):
        raise Wrong(
            "ignores-input",
            "The logits do not depend on the tokens: the model predicts the same for every text.",
            look=r"def forward|return",
        )
    if not changes(last, *range(last)):
        raise Wrong(
            "no-attention",
            "The logits of a token depend on this token alone. Add attention, so that it sees the "
            "tokens before it.",
            look=r"def forward|attention|@",
        )
    if not changes(last, *range(last - FAR + 1)):
        raise Wrong(
            "short-memory",
            f"The logits do not depend on tokens that are {FAR} or more positions back. A GPT "
            "attends to all earlier tokens.",
            look=r"window|conv|attention|@",
        )


def _check_loss(
    answer: Answer, model: Any, texts: Array, logits: Array, training: Array, held_out: Array
) -> str:
    single, pairs, triples = (_loss_of_counts(training, held_out, n) for n in (1, 2, 3))
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    def loss(shift: int) -> float:
        """Return the loss if the model predicts the token `shift` positions later."""
        first, last = max(0, -shift), LENGTH - max(0, shift)
        targets = texts[:, first + shift : last + shift, None]
        return float(-np.take_along_axis(log_probabilities[:, first:last], targets, -1).mean())

    yours = loss(1)
    compared = (
        f"Your loss on the last tenth of the text is {yours:.2f} nats per character. Counts of "
        f"single characters reach {single:.2f}, of pairs {pairs:.2f}, of triples {triples:.2f}."
    )
    if yours < triples:
        return f"{compared} You are below the triples."
    for shift, name in ((0, "the token itself"), (2, "the token after the next"),
                        (-1, "the token before")):  # fmt: skip
        if loss(shift) < yours - 0.1:
            raise Wrong(
                "wrong-targets",
                f"{compared} But for {name} the loss is {loss(shift):.2f}: the model has learned "
                "to predict that. The target of tokens[i] is tokens[i + 1].",
                look=r"\[.*1.*:|: *-1\]|cross_entropy",
            )
    if yours > single - 0.02:
        raise Wrong(
            "not-trained",
            f"{compared} The model has learned nothing yet: are the gradients set to 0, computed "
            "and applied in each step (zero_grad, backward, step), and for all parameters?",
            look=r"step|backward|lr",
        )
    if _ignores_order(answer, model, texts, logits):
        raise Wrong(
            "no-positions",
            f"{compared} The order of the earlier tokens makes no difference: add the positions.",
            look=r"embed|Embedding|arange",
        )
    raise Wrong(
        "loss-too-high",
        f"{compared} Get below the triples: train for more steps, try a learning rate of 0.003 "
        "with AdamW, and check residual connections and norms.",
        look=r"lr|range\(",
    )


def _ignores_order(answer: Answer, model: Any, texts: Array, logits: Array) -> bool:
    few = texts[:8].copy()
    few[:, :-1] = few[:, -2::-1]
    result = _logits(answer, model, few, logits.shape[-1])[:, -1]
    return bool(np.abs(result - logits[:8, -1]).max() < 1e-4)


def _loss_of_counts(training: Array, held_out: Array, length: int) -> float:
    """Return the loss of predicting a token from the `length - 1` tokens before it by counting.

    Counts of a longer context are mixed with those of the shorter one (Jelinek and Mercer 1980).
    """
    vocabulary = int(max(training.max(), held_out.max())) + 1
    probability = np.full(len(held_out), 1 / vocabulary)
    contexts: Counter[int] = Counter({0: len(training)})
    keys, seen = np.zeros(len(held_out), np.int64), np.zeros(len(training), np.int64)
    for size in range(1, length + 1):
        seen = seen[: len(training) - size + 1] * vocabulary + training[size - 1 :]
        before, keys = keys[: len(held_out) - size + 1], keys[: len(held_out) - size + 1]
        keys = keys * vocabulary + held_out[size - 1 :]
        counts = Counter(seen.tolist())
        found = np.array([counts[key] for key in keys.tolist()])
        total = np.array([contexts[key] for key in before.tolist()])
        probability = (found + 5 * probability[len(probability) - len(found) :]) / (total + 5)
        contexts = counts
    return float(-np.log(probability).mean())
