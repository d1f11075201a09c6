"""Exercise 11: rotary positions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from headway.check.suspects.steps import Array, Step
from headway.learn.answer import Answer
from headway.learn.graders.calls import Watched
from headway.learn.graders.compare import Fault, Inputs, View, agree, compare
from headway.learn.graders.modules import ARGUMENTS
from headway.learn.grades import Wrong


def halves(x: Array) -> tuple[Array, Array]:
    """Return the features i and i + d/2 of all pairs."""
    first, second = np.split(x, 2, axis=-1)
    return first, second


def neighbors(x: Array) -> tuple[Array, Array]:
    """Return the features 2i and 2i + 1 of all pairs."""
    return x[..., ::2], x[..., 1::2]


def join(first: Array, second: Array) -> Array:
    """Undo `halves`."""
    return np.concatenate([first, second], axis=-1)


def interleave(first: Array, second: Array) -> Array:
    """Undo `neighbors`."""
    return np.stack([first, second], axis=-1).reshape((*first.shape[:-1], -1))


def frequencies(width: int, base: float) -> Array:
    """Return the angle per position of each pair."""
    return np.asarray(base ** (-2 * np.arange(width // 2) / width))


def rotate(first: Array, second: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """Rotate pairs counterclockwise."""
    return first * cos - second * sin, first * sin + second * cos


@dataclass(frozen=True)
class Rotary:
    """The right answer, in steps. take, put: the features of pairs, and back."""

    take: Step = halves
    put: Step = join
    axes: Step = lambda x: x
    positions: Step = np.arange
    frequencies: Step = frequencies
    angles: Step = np.multiply.outer
    features: Step | None = None  # the angle of each feature, instead of each pair
    trigonometry: Step = lambda angles: (np.cos(angles), np.sin(angles))
    rotate: Step = rotate
    share: float = 1.0

    def __call__(self, x: Array, base: float = 10_000.0) -> Array:
        """Return x, rotated."""
        x = self.axes(x)
        width = int(x.shape[1] * self.share)
        positions = self.positions(len(x))
        first, second = self.take(x[:, :width])
        if self.features is None:
            angles = self.angles(positions, self.frequencies(width, base))
            cos, sin = self.trigonometry(angles)
            pair = self.rotate(first, second, cos, sin)
        else:
            each = self.take(self.features(positions, width, base))
            (cos, sin), (cos2, sin2) = map(self.trigonometry, each)
            pair = first * cos - second * sin, first * sin2 + second * cos2
        return np.asarray(self.axes(np.concatenate([self.put(*pair), x[:, width:]], axis=1)))


FORMULAS = [Rotary(), Rotary(take=neighbors, put=interleave)]


LONGEST = 40  # tokens


def cases() -> list[dict[str, Any]]:
    """Return inputs of different shapes, the smallest first."""
    random = np.random.default_rng(11)
    return [
        {"x": random.normal(size=shape).round(1), **base}
        for shape, base in (
            ((2, 4), {"base": 10.0}),
            ((4, 6), {"base": 100.0}),
            ((6, 8), {"base": 10_000.0}),
            ((LONGEST, 4), {"base": 1000.0}),
        )
    ]


def faults() -> list[Fault]:
    """Return the faults that the grader knows."""
    return [*of_rotation(), *of_angles(), *of_pairs()]


def of_rotation() -> list[Fault]:
    """Return faults of what is done with cosine and sine."""
    found = []
    right = "A pair (a, b) becomes (a cos - b sin, a sin + b cos)."

    def add(name: str, message: str, step: Step, look: str = r"cos|sin") -> None:
        found.append(Fault(name, f"{message} {right}", look, {"rotate": step}))

    add(
        "no-rotation",
        "Nothing is rotated: x is returned, or all positions are 0.",
        lambda a, b, c, s: (a, b),
        r"return",
    )
    add(
        "direction",
        "The rotation has the opposite direction: the sine has the wrong sign. Scores stay the "
        "same if queries and keys are both rotated so, but the other direction is what trained "
        "models expect.",
        lambda a, b, c, s: (a * c + b * s, b * c - a * s),
    )
    minus = "A minus sign is {}."
    add("minus-sign", minus.format("missing"), lambda a, b, c, s: (a * c + b * s, b * c + a * s))
    add("minus-sign", minus.format("wrong"), lambda a, b, c, s: (a * c - b * s, b * c - a * s))
    over = "The second line of the rotation uses the feature that the first one has changed "
    over += "already. Compute both from the old features."
    add(
        "overwritten",
        over,
        lambda a, b, c, s: (a * c - b * s, (a * c - b * s) * s + b * c),
        r"=.*(cos|sin)",
    )
    add(
        "overwritten",
        over,
        lambda a, b, c, s: (a * c - (a * s + b * c) * s, a * s + b * c),
        r"=.*(cos|sin)",
    )
    add(
        "not-swapped",
        "The features of a pair are not exchanged before they meet the sine.",
        lambda a, b, c, s: (a * c + a * s, b * c + b * s),
    )
    add(
        "not-swapped",
        "The features of a pair are not exchanged before they meet the sine.",
        lambda a, b, c, s: (a * c - a * s, b * s + b * c),
    )
    add("cosine-only", "The sine is missing.", lambda a, b, c, s: (a * c, b * c))
    add("sine-only", "The cosine is missing.", lambda a, b, c, s: (-b * s, a * s))
    add("sine-only", "The cosine is missing.", lambda a, b, c, s: (a * s, b * s))
    add(
        "one-feature",
        "Only the first feature of each pair changes.",
        lambda a, b, c, s: (a * c - b * s, b),
    )
    add(
        "one-feature",
        "Only the second feature of each pair changes.",
        lambda a, b, c, s: (a, a * s + b * c),
    )
    add(
        "pair-exchanged",
        "The two features of each pair are exchanged in the result.",
        lambda a, b, c, s: (a * s + b * c, a * c - b * s),
    )
    add(
        "wrong-terms",
        "The second line of the rotation has cosine and sine exchanged.",
        lambda a, b, c, s: (a * c - b * s, a * c + b * s),
    )
    add(
        "cosine-sine",
        "Cosine and sine are exchanged.",
        lambda a, b, c, s: (a * s - b * c, a * c + b * s),
    )
    add(
        "cosine-sine",
        "Cosine and sine are exchanged.",
        lambda a, b, c, s: (a * s + b * c, b * s - a * c),
    )
    added = "Cosines and sines are added to x, as absolute positions are. Rotate instead."
    add("added", added, lambda a, b, c, s: (a + s, b + c), r"\+")
    add("added", added, lambda a, b, c, s: (a + c, b + s), r"\+")
    add(
        "scaled",
        "x is multiplied by cosines and sines. Rotate instead.",
        lambda a, b, c, s: (a * c, b * s),
    )
    add(
        "scaled",
        "x is multiplied by cosines and sines. Rotate instead.",
        lambda a, b, c, s: (a * s, b * c),
    )
    add(
        "residual",
        "x is added to the result.",
        lambda a, b, c, s: tuple(map(sum, zip((a, b), rotate(a, b, c, s), strict=True))),
        r"\+",
    )
    return found


def of_angles() -> list[Fault]:
    """Return faults of positions, frequencies and angles."""
    found = []
    right = (
        "The angle of pair i of the token at position p is p * base ** (-2 * i / d), for p = 0, "
    )
    right += "1, 2, ... and i = 0, ..., d/2 - 1."

    def add(name: str, message: str, look: str = r"\*\*|arange|pow|exp", **steps: Any) -> None:
        found.append(Fault(name, f"{message} {right}", look, steps))

    def by(exponent: Callable[[Array, int], Array]) -> Step:
        return lambda width, base: base ** exponent(np.arange(width // 2), width)

    add("exponent", "The exponent is i/d instead of 2i/d.", frequencies=by(lambda i, d: -i / d))
    add(
        "exponent", "The exponent is 4i/d instead of 2i/d.", frequencies=by(lambda i, d: -4 * i / d)
    )
    add(
        "exponent",
        "The exponent counts pairs from 1 instead of 0.",
        frequencies=by(lambda i, d: -2 * (i + 1) / d),
    )
    add(
        "exponent",
        "The exponent is i / (d/2 - 1): divide by d/2.",
        frequencies=by(lambda i, d: -i / (d / 2 - 1)),
    )
    add(
        "exponent",
        "The exponent is rounded: // is an integer division. Use /.",
        "//",
        frequencies=by(lambda i, d: -2 * i // d),
    )
    add(
        "exponent-sign",
        "The frequencies grow: the sign of the exponent is wrong, or positions are divided by the "
        "frequencies.",
        frequencies=by(lambda i, d: 2 * i / d),
    )
    add(
        "same-frequency",
        "All pairs have the same frequency. (Is 2 * i // d an integer division?)",
        frequencies=by(lambda i, d: 0.0 * i),
    )
    add(
        "frequencies-reversed",
        "The frequencies are in reversed order.",
        frequencies=lambda width, base: frequencies(width, base)[::-1],
    )
    add(
        "frequencies-reversed",
        "The frequencies are in reversed order.",
        frequencies=by(lambda i, d: 2 * (i + 1) / d - 1),
    )
    for fixed in (10_000.0, 1000.0, 500_000.0):
        add(
            "base-ignored",
            f"The base is always {fixed:g}. Use the argument `base`.",
            "0000|1e",
            frequencies=lambda width, base, fixed=fixed: frequencies(width, fixed),
        )
    for log, name in ((np.log10, "10"), (np.log2, "2")):
        add(
            "logarithm",
            f"The logarithm has the base {name}. Use the natural logarithm, np.log.",
            "log",
            frequencies=lambda width, base, log=log: frequencies(width, float(np.exp(log(base)))),
        )
    add(
        "positions-from-1",
        "The positions start at 1. Scores stay the same if all positions are shifted, but this "
        "task starts at 0.",
        positions=lambda tokens: np.arange(1, tokens + 1),
    )
    add(
        "positions-reversed",
        "The positions are in reversed order.",
        positions=lambda tokens: np.arange(tokens)[::-1],
    )
    add(
        "positions-divided",
        "The positions are divided by the number of tokens.",
        positions=lambda tokens: np.arange(tokens) / tokens,
    )
    add(
        "positions-divided",
        "The positions are divided by the number of tokens minus 1.",
        positions=lambda tokens: np.arange(tokens) / (tokens - 1),
    )
    add(
        "same-position",
        "All tokens have the same position: the angles do not depend on p.",
        positions=lambda tokens: np.ones(tokens),
    )
    add(
        "same-position",
        "All tokens have the position of the last one.",
        positions=lambda tokens: np.full(tokens, tokens - 1),
    )
    add(
        "same-position",
        "All tokens have the number of tokens as their position.",
        positions=lambda tokens: np.full(tokens, tokens),
    )
    for name, message, factor in (
        (
            "degrees",
            "The angles are converted from degrees, but they are in radians already.",
            np.pi / 180,
        ),
        (
            "degrees",
            "The angles are converted to degrees. np.cos and np.sin expect radians.",
            180 / np.pi,
        ),
        ("angles-times-pi", "The angles have an additional factor of 2 pi.", 2 * np.pi),
        ("angles-times-pi", "The angles have an additional factor of pi.", np.pi),
        ("angles-doubled", "The angles are doubled, or x is rotated twice.", 2.0),
        ("angles-halved", "The angles are halved.", 0.5),
    ):
        look = r"pi|deg|rad|2"
        add(name, message, look, angles=lambda p, f, k=factor: k * np.multiply.outer(p, f))
    add(
        "angles-added",
        "Positions and frequencies are added. Multiply them.",
        r"\+",
        angles=np.add.outer,
    )
    add(
        "positions-summed",
        "The angles are summed over the positions (cumsum).",
        "sum",
        angles=lambda p, f: np.multiply.outer(p, f).cumsum(axis=0),
    )
    for factor in (1, 2):
        add(
            "angle-of-feature",
            "The two features of a pair have different angles: there are d angles instead of d/2.",
            features=lambda p, d, base, factor=factor: np.multiply.outer(
                p, base ** (-factor * np.arange(d) / d)
            ),
        )
    return found


def of_pairs() -> list[Fault]:
    """Return faults of the pairs."""
    found = []
    right = "Either pair i is (i, i + d/2), with concatenate in the end, or it is (2i, 2i + 1), "
    right += "with stack and reshape in the end."
    look = r"concat|cat|stack|reshape|::2|repeat|tile|chunk|split"

    def add(name: str, message: str, **steps: Any) -> None:
        found.append(Fault(name, f"{message} {right}", look, steps))

    mixed = "Two conventions are mixed: the angles are made for other pairs than the features."
    for spread in (partial(np.repeat, repeats=2, axis=1), partial(np.tile, reps=2)):
        add(
            "pairs-mixed",
            mixed,
            features=lambda p, d, base, spread=spread: spread(
                np.multiply.outer(p, frequencies(d, base))
            ),
        )
    order = "The features leave in another order than they came in."
    for put in (join, interleave):
        add("pairs-order", order, put=put)
    add("pairs-order", order, put=lambda a, b: np.stack([a, b], axis=1).reshape((len(a), -1)))
    add(
        "pairs-order",
        "The parts are joined along the tokens.",
        put=lambda a, b: np.concatenate([a, b]).reshape((len(a), -1)),
    )
    add(
        "wrong-pairs",
        "Feature i is paired with feature d - 1 - i.",
        take=lambda x: (x[:, : x.shape[1] // 2], x[:, : x.shape[1] // 2 - 1 : -1]),
        put=lambda a, b: join(a, b[:, ::-1]),
    )
    add("partial", "Only the first half of the features is rotated.", share=0.5)
    add(
        "tokens-rotated",
        "Pairs of tokens are rotated instead of pairs of features: the axes are exchanged.",
        axes=np.transpose,
    )
    return found


def views(answer: Answer) -> Iterator[View]:
    """Return the ways to call the answer: without and with axes of batch and heads."""

    def call(inputs: Inputs, shape: tuple[int, ...], *, axes: int) -> Array:
        ones = (1,) * axes
        given = {**inputs, "x": inputs["x"].reshape((*ones, *shape))}
        result = answer.call_named(given, (*ones, *shape))
        return result.reshape(shape) if result.shape == (*ones, *shape) else result

    for axes in range(3):
        yield partial(call, axes=axes)


def _function(cls: type) -> Any:
    """Return a function that calls an instance of a class, such as Rotary(width, base)(x)."""
    parameters = inspect.signature(cls).parameters.values()

    def call(x: Any, base: float | None = None) -> Any:
        given = [] if base is None else [base]
        arguments: dict[str, Any] = {}
        for parameter in parameters:
            if re.search("base|theta", parameter.name):
                arguments |= dict.fromkeys([parameter.name] * len(given), base)
                given = []
            elif parameter.default is parameter.empty and parameter.kind < parameter.VAR_POSITIONAL:
                is_length = re.fullmatch(ARGUMENTS["tokens"], parameter.name)
                arguments[parameter.name] = LONGEST if is_length else x.shape[-1]
        instance = cls(**arguments)
        method = instance if callable(instance) else instance.forward
        return method(x, *given)

    return call


def grade(answer: Answer) -> None:
    """Raise `Wrong` if the answer is wrong."""
    if answer.is_class:
        watched = Watched(replace(answer, entry=_function(answer.entry)))
    else:
        watched = Watched.of(answer)
    view = compare([*views(watched.answer)], cases(), FORMULAS, faults(), what="rotated x")
    x, base = cases()[2].values()
    usual = view({"x": x, "base": base}, x.shape)
    if not agree(view({"x": x}, x.shape), usual):
        message = "Without the argument `base` the result is wrong: its default must be 10000.0."
        raise Wrong("base-default", message, look=r"def .*base|base *=")
    watched.check()
