"""Exercise 3: softmax(scores)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.check.suspects.steps import Step, softmax
from headway.learn.answer import Answer
from headway.learn.graders.attention_faults import SOFTMAX
from headway.learn.graders.calls import Watched, check_is_own, views
from headway.learn.graders.compare import Array, Fault, View, compare, fault
from headway.learn.graders.faults import of_normalization, of_results, total, without
from headway.learn.grades import Wrong


@dataclass(frozen=True)
class Softmax:
    """The right answer, in steps."""

    normalize: Step = softmax
    finish: Step = lambda weights: weights

    def __call__(self, scores: Array) -> Array:
        """Return the weights; in the precision of the scores, so that large ones overflow."""
        return np.asarray(self.finish(self.normalize(scores)))


def cases() -> list[dict[str, Array]]:
    """Return inputs, the smallest first."""
    random = np.random.default_rng(3)
    sizes = (2, 2), (3, 2), (2, 3), (4, 4), (6, 6), (5, 3)
    return [{"scores": 2 * random.normal(size=size).round(1)} for size in sizes]


def extremes() -> list[dict[str, Array]]:
    """Return scores that overflow without care, and scores of -inf."""
    small = [[0.0, 1.0], [2.0, 1.0]]
    large = [[1000.0, 1001.0], [0.0, 1.0]]
    low = [[-1000.0, -1001.0], [0.0, 1.0]]
    mixed = [[0.0, 200.0, 100.0], [1.0, 2.0, 3.0]]
    hidden = [[1.0, -np.inf, -np.inf], [1.0, 2.0, -np.inf], [1.0, 2.0, 0.5]]
    return [{"scores": np.array(rows, np.float32)} for rows in (small, large, low, mixed, hidden)]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    others = without(
        of_results("matrix of weights", rows="row of scores"),
        "softmax-added", "normalized-result", "absolute", "relu", "integers",
    )  # fmt: skip
    scaled = "The scores are divided by the square root of the number of scores. Use them as they "
    scaled += "are."
    return [
        *of_normalization(),
        fault("scaled", scaled, "sqrt|0.5", normalize=lambda s: softmax(s / s.shape[-1] ** 0.5)),
        fault("causal-mask", "There is a causal mask: scores with j > i are hidden. That is a "
              "later chapter; leave it out here.", "tri|mask|inf",
              normalize=lambda s: softmax(np.where(np.tri(*s.shape) > 0, s, -np.inf))),
        *others,
    ]  # fmt: skip


def extreme_faults() -> list[Fault]:
    """Return faults that only extreme scores show."""
    found: list[Fault] = []
    each = "Subtract the largest score of each row first: scores.max(axis=-1, keepdims=True)."

    def add(name: str, message: str, *steps: Step) -> None:
        found.extend(fault(name, message, SOFTMAX, normalize=step) for step in steps)

    def shifted(scores: Array, shift: Array) -> Array:
        exponentials = np.exp(scores - shift)
        return np.asarray(exponentials / total(exponentials))

    overflow = f"Large scores give NaN, because the exponential overflows. {each}"
    add("overflow", overflow, lambda s: np.exp(s) / total(np.exp(s)),
        lambda s: np.nan_to_num(np.exp(s) / total(np.exp(s))),
        lambda s: np.exp(s - np.log(total(np.exp(s)))),
        lambda s: (e := np.exp(s.astype(np.float64))) / total(e),
        lambda s: shifted(s, s.mean(axis=-1, keepdims=True)),
        lambda s: shifted(s, s.min(axis=-1, keepdims=True)),
        lambda s: shifted(s, s.mean()), lambda s: shifted(s, s.min()),
        lambda s: shifted(s, np.abs(s).max(axis=-1, keepdims=True)),
        lambda s: shifted(s, np.median(s, axis=-1, keepdims=True)),
        lambda s: shifted(s, total(s)))  # fmt: skip
    add("one-maximum",
        "One maximum is subtracted from all rows, so that all exponentials of a row of smaller "
        f"scores are 0, and 0 / 0 is NaN. {each}",
        lambda s: shifted(s, s.max()), lambda s: np.nan_to_num(shifted(s, s.max())),
        lambda s: shifted(s.astype(np.float64), s.max()))  # fmt: skip
    for limit in (50, 150, 500):  # other limits give the same weights
        add("clipped",
            f"Large scores are cut off (clip), so that different ones get equal weights. {each}",
            lambda s, limit=limit: softmax(np.clip(s, -limit, limit)),
            lambda s, limit=limit: softmax(np.minimum(s, limit)))  # fmt: skip
    add("clipped",
        "Large scores are cut off (clip), so that different ones get equal weights, and in float32 "
        f"exp(100) is still infinite. {each}",
        lambda s: (e := np.exp(np.clip(s, -100, 100))) / total(e))  # fmt: skip
    infinite = "A score of -inf does not get the weight 0, but NaN or another number. "
    add("infinity", infinite + "Do not replace -inf by 0, and do not multiply it.",
        lambda s: softmax(np.where(np.isfinite(s), s, 0)),
        lambda s: np.where(np.isfinite(s).all(-1, keepdims=True), softmax(s), np.nan))  # fmt: skip
    return found


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer)
    what = "matrix of weights"
    view = compare([*views(watched.answer)], cases(), [Softmax()], faults(), what=what,
                   measured=measured)  # fmt: skip
    try:
        compare([view], extremes(), [Softmax()], extreme_faults(), what=what)
    except Wrong as wrong:
        _name_extremes(wrong)
        raise
    watched.check()
    check_is_own(answer, "softmax")


def _name_extremes(wrong: Wrong) -> None:
    """Name a fault that has no name: it is one of large scores, or of -inf."""
    if wrong.fault in ("unknown", "nan", "precision", "error") and wrong.example is not None:
        if np.isfinite(wrong.example.inputs["scores"]).all():
            wrong.fault = "overflow"
            message = "Ordinary scores are right, but very large or very small ones are not. "
        else:
            wrong.fault = "infinity"
            message = "A score of -inf must give the weight 0. "
        wrong.message = message + wrong.message[0].upper() + wrong.message[1:]


def measured(view: View) -> list[Fault]:
    """Return the softmax with a temperature, if that is what the answer computes."""
    scores = np.array([[0.0, 1.0, -0.5], [0.4, 0.1, 0.7]])
    weights = view({"scores": scores}, scores.shape)
    with np.errstate(all="ignore"):
        factor = float(np.log(weights[0, 1] / weights[0, 0]))
    if not np.isfinite(factor):
        return []
    message = f"The scores are multiplied by {factor:.4g} (a temperature, or a scale). Use them as "
    message += "they are."
    step = {"normalize": lambda s: softmax(factor * s)}
    return [Fault("temperature", message, r"\*|/|\*\*", step)]
