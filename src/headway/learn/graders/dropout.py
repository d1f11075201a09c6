"""Exercise 7: dropout(weights, rate, training). The result is random, so properties are tested."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from headway.learn.answer import Answer
from headway.learn.graders.calls import Watched, check_is_own
from headway.learn.graders.compare import Array
from headway.learn.grades import Example, Wrong

RATES = (0.2, 0.7)
SIZE = 100  # of the matrices: a share of 10,000 weights is known to about 0.02
NEAR = 0.03
Found = tuple[str, str, str]  # fault, message, look
SEEDS = count()


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    watched = Watched.of(answer, as_it_is=True)
    call = Caller(watched.answer)
    rate, found = RATES[0], [*_small(call)]
    if not found:
        for rate in RATES:
            if found := [*_training(call, rate)]:
                break
        else:
            rate = RATES[0]
        found += [*_evaluation(call, "no-dropout" in [name for name, _, _ in found])]
        found += [] if found else [*_corners(call)]
    if found:
        raise _wrong(call, rate, {name: (message, look) for name, message, look in found})
    watched.check()
    check_is_own(answer, "dropout")


class Caller:
    """Calls the answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __call__(self, weights: Array, rate: float, training: bool) -> Array:
        """Return the result; a new random state for answers that ask for one."""
        if self.answer.is_class:  # a module
            instance = self.answer.entry(rate)
            getattr(instance, "train", lambda mode: setattr(instance, "training", mode))(training)
            called = instance if callable(instance) else instance.forward
            return self.answer.call(weights, of=called, shape=weights.shape)
        inputs: dict[str, Any] = {"weights": weights, "rate": rate, "training": training}
        for name in self.answer.names()[3:]:
            state = self._state(name)
            if state is not None:
                inputs[name] = state
        return self.answer.call_named(inputs, weights.shape)

    def _state(self, name: str) -> Any:
        seed = next(SEEDS)
        if self.answer.library.name == "jax" and ("key" in name or "rng" in name):
            import jax

            return jax.random.key(seed)
        if self.answer.library.name == "numpy" and ("rng" in name or "gen" in name):
            return np.random.default_rng(seed)
        return None


def weights_of(size: int) -> Array:
    """Return weights whose rows sum to 1, all larger than 0."""
    weights = np.random.default_rng(7).uniform(0.5, 1.5, size=(size, size))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _small(call: Caller) -> Iterator[Found]:
    """Look at the shape of a small result; errors are raised here."""
    weights = weights_of(3)
    for training in (True, False):
        result = call(weights, 0.5, training)
        if result.shape != weights.shape:
            yield "shape", (
                f"The result has the shape {result.shape}, but it must have the shape of the "
                f"weights, {weights.shape}."
            ), "return"  # fmt: skip
            return


def _training(call: Caller, rate: float) -> Iterator[Found]:
    """Look at a result for `training=True`."""
    weights = weights_of(SIZE)
    result, again = call(weights, rate, True), call(weights, rate, True)
    same = np.array_equal(result, again, equal_nan=True)
    if _kind(result) != "some":
        kinds = {_kind(call(weights, rate, True)) for _ in range(40)}
        if {"all", "none"} <= kinds:
            yield "one-draw", (
                "One random number decides for all weights: either all or none are dropped. Draw "
                "one for each weight: the random array needs the shape of `weights`."
            ), "rand|bernoulli|binomial|choice"  # fmt: skip
            return
    if np.allclose(result, weights, rtol=1e-4):
        yield "no-dropout", "Nothing is dropped with training=True.", "training|if"
        return
    if not np.isfinite(result).all():
        if np.isneginf(result).any():
            yield "dropped-to-infinity", (
                "Dropped weights are -inf. That belongs before the softmax; here they must be 0."
            ), "inf"  # fmt: skip
        else:
            yield "nan", "The result contains NaN or infinity.", "/|inf|nan"
        return
    zero = result == 0
    if zero.all():
        yield "everything-dropped", (
            f"All weights are 0 with rate = {rate:g}. Keep a weight if its own random number from "
            "0 to 1 is not below the rate."
        ), "rand|bernoulli|binomial|choice"  # fmt: skip
        return
    if not zero.any():
        yield from _without_zeros(weights, result, rate)
        return
    if same:
        if result[~zero].size and weights[zero].max() < weights[~zero].min():
            yield "threshold", (
                "The smallest weights are dropped. Which ones are dropped must not depend on their "
                "size: draw a random number for each."
            ), "<|>"  # fmt: skip
            return
        yield "same-mask", (
            "Every call drops the same weights. Draw the random numbers inside of the function, so "
            "that each call has new ones, and set no seed there."
        ), "seed|default_rng|PRNGKey|random.key|Generator"  # fmt: skip
    # By chance, three equal numbers occur in one of 10,000 grades.
    numbers = {int((r == 0).sum()) for r in (result, again, call(weights, rate, True))}
    yield from _pattern(zero, len(numbers) == 1 and not same)
    yield from _share_and_scale(weights, result, zero, rate)


def _kind(result: Array) -> str:
    """Return how many numbers of a result are 0: "all", "none" or "some"."""
    zero = result == 0
    return "all" if zero.all() else "some" if zero.any() else "none"


def _without_zeros(weights: Array, result: Array, rate: float) -> Iterator[Found]:
    ratio = result / weights
    if abs(float(np.isclose(result, -rate, atol=1e-6).mean()) - rate) < NEAR:
        yield "brackets", (
            "The rate is subtracted from the result: `/ 1 - rate` means (/ 1) - rate. Write "
            "/ (1 - rate)."
        ), r"/ ?1 ?- ?"  # fmt: skip
    elif np.ptp(ratio) < 1e-3:
        yield "only-scaled", (
            f"Nothing is dropped: all weights are multiplied by {ratio.mean():.3g}. Set a random "
            "share of them to 0."
        ), r"\*|/"  # fmt: skip
    elif np.allclose(result.sum(axis=-1), 1, atol=1e-3):
        yield "softmax-added", (
            "A softmax after the dropout gives the dropped weights a value again. Return the "
            "weights without it."
        ), "softmax|exp"  # fmt: skip
    elif len(np.unique(ratio.round(4))) <= 2:
        yield "not-zero", (
            f"Dropped weights are multiplied by {ratio.min():.3g} instead of 0."
        ), r"where|\*"  # fmt: skip
    else:
        yield "noise", (
            "No weight is 0: random numbers are added or multiplied. Each weight must be either 0 "
            "or weight / (1 - rate)."
        ), "rand|normal|noise"  # fmt: skip


def _pattern(zero: Array, same_number: bool) -> Iterator[Found]:
    """Look at which weights are dropped."""
    each = "Draw one random number for each weight: the random array needs the shape of `weights`."
    look = "rand|bernoulli|binomial|choice"
    if (zero == zero[:1]).all():
        yield "drops-columns", f"Whole columns are dropped. {each}", look
    elif (zero == zero[:, :1]).all():
        yield "drops-rows", f"Whole rows are dropped. {each}", look
    elif (rows := int(zero.any(axis=1).sum())) < len(zero) / 2:
        yield "rows-missed", (
            f"Weights are dropped in {rows} of {len(zero)} rows only. {each}"
        ), look  # fmt: skip
    elif same_number:
        yield "fixed-number", (
            f"Every call drops exactly {zero.sum()} of {zero.size} weights. {each}"
        ), look  # fmt: skip
    elif np.ptp(zero.sum(axis=1)) == 0 or np.ptp(zero.sum(axis=0)) == 0:
        yield "fixed-number", (
            f"Every row (or column) loses exactly {zero.sum(axis=1)[0]} weights. {each}"
        ), look  # fmt: skip
    elif not np.triu(zero, 1).any() or not np.tril(zero, -1).any():
        yield "triangle", f"Only one triangle of the matrix is dropped from. {each}", look
    elif (zero == zero.T).all():
        yield "symmetric", f"The dropped weights are symmetric. {each}", look


def _share_and_scale(weights: Array, result: Array, zero: Array, rate: float) -> Iterator[Found]:
    keep, share = 1 - rate, float(zero.mean())
    ratio = result[~zero] / weights[~zero]
    factor = float(np.median(ratio))
    is_keep = abs(share - keep) < NEAR
    # Whole rows or columns are 100 numbers only.
    tolerance = NEAR if len(np.unique(zero.sum(axis=0))) > 2 else 0.25
    if is_keep and abs(share - rate) > tolerance:
        yield "rate-is-keep", (
            f"With rate = {rate:g}, a share of {share:.2f} is dropped: the rate is used as the "
            "probability to keep a weight. Drop a weight if its random number is below the rate."
        ), "<|>|bernoulli|binomial"  # fmt: skip
    elif abs(share - rate) > tolerance:
        yield "rate-unused" if abs(share - 0.5) < NEAR else "share", (
            f"With rate = {rate:g}, a share of {share:.2f} is dropped. Drop a weight if its random "
            "number from 0 to 1 is below the rate."
        ), "rand|<|>|bernoulli|binomial|choice"  # fmt: skip
    look = r"/|\*"
    right = f"Divide the others by 1 - rate: {1 / keep:.3g}-fold for rate = {rate:g}."
    sums = result.sum(axis=1)
    if np.ptp(result[~zero]) < 1e-3 * abs(result[~zero].mean()):
        yield "mask-returned", (
            "The mask is returned, not the weights. Multiply the weights by it."
        ), "^return (?!weights$)"  # fmt: skip
    elif np.ptp(ratio) > 1e-3 * abs(factor):
        if np.allclose(sums[sums > 0], 1, atol=1e-3):
            yield "normalized-again", (
                f"After the dropout, each row is divided by its sum. {right}"
            ), "sum|softmax"  # fmt: skip
        else:
            yield "noise", (
                "The weights that are kept are multiplied by different numbers. " + right
            ), "rand|normal"  # fmt: skip
    elif np.isclose(factor, 1 / keep, rtol=1e-3) or (is_keep and np.isclose(factor, 1 / rate)):
        return
    elif np.isclose(factor, 1, rtol=1e-3):
        yield "no-rescaling", (
            f"The weights that are kept are not rescaled, so that sums are too small. {right}"
        ), "^return (?!weights$)|where"  # fmt: skip
    elif np.isclose(factor, 1 / (1 - share), rtol=1e-3):
        yield "rescaled-by-count", (
            f"The scale is made from the number of weights that were dropped. {right}"
        ), "mean|sum"  # fmt: skip
    else:
        name = {keep: "(1 - rate)", rate: "rate", 1 / rate: "1 / rate", 1 + rate: "(1 + rate)"}
        by = next((text for value, text in name.items() if np.isclose(factor, value, 1e-3)), "")
        yield "rescaled-wrong", (
            f"The weights that are kept are multiplied by {by or f'{factor:.3g}'}. {right}"
        ), look  # fmt: skip


def _evaluation(call: Caller, is_unchanged: bool) -> Iterator[Found]:
    """Look at a result for `training=False`."""
    weights, rate = weights_of(SIZE), RATES[0]
    result = call(weights, rate, False)
    if np.allclose(result, weights, rtol=1e-4):
        return
    look, same = "training|if", "Return the weights as they are if training is False."
    ratio = result / weights
    if (result == 0).all():
        yield "evaluation", f"With training=False the result is 0. {same}", look
    elif (result == 0).any():
        if is_unchanged:
            yield "training-reversed", (
                "Weights are dropped with training=False, and none with training=True. It must be "
                "the opposite."
            ), look  # fmt: skip
        else:
            yield "evaluation", f"Weights are dropped with training=False, too. {same}", look
    elif np.ptp(ratio) < 1e-3:
        yield "evaluation-scaled", (
            f"With training=False the weights are multiplied by {ratio.mean():.3g}. {same}"
        ), look  # fmt: skip
    else:
        yield "evaluation", f"With training=False the weights are changed. {same}", look


def _corners(call: Caller) -> Iterator[Found]:
    """Look at a rate of 0 and at weights of 0."""
    weights = np.tril(weights_of(SIZE))
    result = call(weights, 0.0, True)
    if not np.allclose(result, weights, rtol=1e-4):
        yield "rate-zero", "With rate = 0 the weights must not change.", "rate"


def _wrong(call: Caller, rate: float, found: dict[str, tuple[str, str]]) -> Wrong:
    if {"training-reversed"} < {*found}:
        found = {"training-reversed": found["training-reversed"]}
    messages = [message for message, _ in found.values()]
    if len(messages) > 1:
        ordinals = ("First", "Second", "Third", "Fourth")
        number = ("Two", "Three", "Four")[len(messages) - 2]
        messages = [f"{o}: {m}" for o, m in zip(ordinals, messages, strict=False)]
        messages.insert(0, f"{number} mistakes.")
    is_evaluation = any(name.startswith("evaluation") for name in found)
    weights = np.full((3, 3), 1 / 3)
    result, right = _shown(call, weights, rate)
    if is_evaluation:
        result, right = call(weights, rate, False), weights
    inputs = {"weights": weights, "rate": np.array(rate), "training": np.array(not is_evaluation)}
    look = "|".join(look for _, look in found.values())
    example = Example(inputs, result, right, None, "result")
    return Wrong(" + ".join(found), " ".join(messages), look=look, example=example)


def _shown(call: Caller, weights: Array, rate: float) -> tuple[Array, Array]:
    """Return a result and one right result, with the same zeros if these are as many as usual."""
    kept = np.array([[0.9, 0.1, 0.6], [0.4, 0.8, 0.3], [0.5, 0.7, 0.15]]) >= rate
    results = [call(weights, rate, True) for _ in range(20)]
    usual = [r for r in results if r.shape == kept.shape and (r != 0).sum() == kept.sum()]
    for result in usual:
        right = (result != 0) * weights / (1 - rate)
        if not np.allclose(result, right):
            return result, right
    return (usual or results)[0], kept * weights / (1 - rate)
