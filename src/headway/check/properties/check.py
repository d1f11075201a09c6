"""The class `Check`, and helpers that several checks share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from headway.check.findings import Outcome
from headway.check.subject import Subject

ALL = ("qkv", "self", "model")
Applies = Callable[[Subject], str | None]
BLOCK = "there is a residual connection or an MLP around the attention"


@dataclass(frozen=True)
class Check:
    """One property that attention must have.

    promise: the property. kinds: the kinds of attention that it checks. needs: the features that
    must be declared. applies: returns None, or the reason why it does not apply to a subject.
    look: a regular expression for source lines that may contain the bug.
    """

    run: Callable[[Subject], Outcome]
    promise: str
    kinds: tuple[str, ...] = ALL
    needs: tuple[str, ...] = ()
    applies: Applies = lambda subject: None
    look: str = r"attn|attention|softmax|matmul|@|einsum"

    @property
    def name(self) -> str:
        """The name of the function, with hyphens."""
        return self.run.__name__.replace("_", "-")


def promises(promise: str, *kinds: str, **options: Any) -> Callable[..., Check]:
    """Return a decorator that makes a function a `Check`.

    kinds: by default all. options: the other fields of `Check`.
    """
    return partial(Check, promise=promise, kinds=kinds or ALL, **options)


def order_free(subject: Subject) -> str | None:
    """Return the reason why a check that permutes tokens does not apply, or None."""
    if subject.declared.order_free:
        return None
    return "it has a mask or positions, so the order of its tokens matters"


def order_of_earlier(subject: Subject) -> str | None:
    """Return the reason why permuting earlier tokens may change the last output, or None.

    The last query of a causal attention without positions sees all tokens, in any order.
    """
    declared = subject.declared
    is_causal = declared.always_causal or bool(subject.causal_options)
    is_plain = unless("positions", "window", "prefix", "pattern")(subject) is None
    if is_causal and is_plain and subject.kind != "model" and not declared.block:
        return None
    return order_free(subject)


def unless(*names: str, also: Applies = lambda subject: None) -> Applies:
    """Return a function for `Check.applies`: the check is meaningless if one of these is declared.

    also: another function for `Check.applies`.
    """

    def applies(subject: Subject) -> str | None:
        for name in names:
            value = getattr(subject.declared, name)
            if value not in (None, False, "softmax"):
                return f"{name}={value} is declared"
        return also(subject)

    return applies


def weights_alone(subject: Subject) -> str | None:
    """Return the reason why a check of the weights alone does not apply, or None."""
    if subject.declared.block:
        return BLOCK
    return order_free(subject) if subject.kind == "self" else None


def can_be_causal(subject: Subject) -> str | None:
    """Return the reason why a check of the causal mask does not apply, or None."""
    declared = subject.declared
    if declared.always_causal or subject.causal_options or declared.pattern or declared.prefix:
        return None
    return "neither causal=True nor the feature 'causal' is declared"


def visible(subject: Subject, tokens: int) -> np.ndarray:
    """Return which token may influence which output, (tokens, tokens), in causal calls.

    In a model with a window, a token also has an influence through tokens between them: as far as
    the declared number of layers reaches, by default without a limit.
    """
    return _reach(subject, tokens, subject.declared.layers or tokens)


def must_see(subject: Subject, tokens: int) -> np.ndarray:
    """Return which token must influence which output, (tokens, tokens), in causal calls.

    Only the first layers of a model count, because each one makes the influence smaller, until it
    is lost in rounding.
    """
    return _reach(subject, tokens, min(subject.declared.layers or 1, 3))


def _reach(subject: Subject, tokens: int, layers: int) -> np.ndarray:
    """Return which token can influence which output through this number of layers."""
    one = _in_one_layer(subject, tokens)
    allowed = one
    if subject.kind == "model" or subject.declared.block:
        for _ in range(layers - 1):
            allowed = allowed | (allowed.astype(int) @ one.astype(int) > 0)
    return allowed


def _in_one_layer(subject: Subject, tokens: int) -> np.ndarray:
    """Return which token may attend to which one."""
    heads = subject.declared.heads if subject.kind == "qkv" else 64
    options = subject.causal_options
    allowed = subject.declared.allowed(tokens, tokens, heads=heads, **options)
    if allowed.ndim == 3:  # one pattern for each head
        allowed = np.asarray(allowed.any(axis=0))
    return allowed


def gap(output: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value; inf for NaN."""
    if output.shape != expected.shape or not np.isfinite(output).all():
        return float("inf")
    if not output.size:
        return 0.0
    largest = np.abs(expected).max()
    return float(np.abs(output - expected).max() / (largest if largest > 0 else 1.0))


def influence(subject: Subject, tokens: int, **options: Any) -> np.ndarray:
    """Return how much each token's output (row) changes with each token's contents (column)."""
    key, is_usual = f"influence of {tokens}", options == subject.causal_options
    if is_usual and key in subject.memory:
        known: np.ndarray = subject.memory[key]
        return known
    inputs = subject.inputs(tokens)
    base = subject.run(inputs, **options)
    changes = np.zeros((tokens, tokens))
    for token in range(tokens):
        other = subject.run(subject.changed(inputs, [token]), **options)
        change = np.abs(other - base).max(axis=-1).reshape((-1, tokens)).max(axis=0)
        changes[:, token] = np.where(np.isfinite(change), change, np.inf)
    changes = np.asarray(changes / max(np.abs(base).max(), 1e-30))
    if is_usual:
        subject.memory[key] = changes
    return changes


def digits(number: float) -> str:
    """Format a number with three digits."""
    return f"{number:.3g}"
