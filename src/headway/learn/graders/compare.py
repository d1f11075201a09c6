"""Compare an answer with the formula, then with the formula with one or two faults.

A formula is a frozen dataclass of steps that is called with the inputs of the exercise. A fault
replaces some of its steps. It is named if it gives the answer's result in all cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from headway.learn.grades import Example, Wrong

Array = np.ndarray
Inputs = Mapping[str, Any]  # arrays and numbers
# Calls the answer with the inputs of a case; the second argument is the right shape.
View = Callable[[Inputs, tuple[int, ...]], Array]
# Together, these two are a softmax over the columns, which is a more likely mistake.
SAME_AS_AXIS = {"queries-keys-exchanged", "weights-transposed"}
MOST_NAMES = 3  # if more mistakes explain a result, none is named
TOLERANCE = 2e-4  # relative to the largest number; answers compute in float32


@dataclass(frozen=True)
class Fault:
    """A mistake: its name, what to do, the steps that it replaces, and the lines to look at."""

    name: str
    message: str
    look: str
    steps: Mapping[str, Any]


def fault(name: str, message: str, look: str = "", **steps: Any) -> Fault:
    """Return a fault that replaces these steps."""
    return Fault(name, message, look, steps)


def agree(first: Array | Wrong, second: Array | Wrong) -> bool:
    """Whether two results are equal up to rounding; two errors are."""
    if isinstance(first, Wrong) or isinstance(second, Wrong):
        return isinstance(first, Wrong) and isinstance(second, Wrong)
    return first.shape == second.shape and not wrong_cells(first, second).any()


def wrong_cells(result: Array, right: Array) -> Array:
    """Return which cells of a result are wrong, as a boolean array."""
    # Not np.isclose, which takes most of the time of a grade.
    with np.errstate(invalid="ignore"):
        near = np.abs(result - right) <= TOLERANCE * _largest(right)
    if near.all():
        return np.asarray(~near)
    return np.asarray(~(near | (result == right) | (np.isnan(result) & np.isnan(right))))


def _largest(right: Array) -> float:
    numbers = np.abs(right)
    largest = float(numbers.max(initial=0.0))
    if not np.isfinite(largest):
        largest = float(numbers[np.isfinite(numbers)].max(initial=0.0))
    return max(largest, 1e-6)


def compare(
    views: Sequence[View],
    cases: Sequence[Inputs],
    formulas: Sequence[Any],
    faults: Iterable[Fault],
    *,
    more: Sequence[Inputs] = (),
    what: str = "result",
    measured: Callable[[View], Iterable[Fault]] = lambda view: (),
    hint: Callable[[View], str] = lambda view: "",
) -> View:
    """Return the first view in which the answer is right; raise `Wrong` if there is none.

    views: the ways to call the answer that are accepted. cases: inputs of different shapes, the
    smallest first. formulas: the right ones. more: cases that only help to name a mistake.
    measured: faults with numbers that are measured. hint: what is known of a wrong result without
    a name.
    """
    expected = [[outcome_of(formula, case) for case in cases] for formula in formulas]
    outcomes = []
    for view in views:
        outcomes.append([_outcome(view, *pair) for pair in zip(cases, expected[0], strict=True)])
        if any(all(map(agree, outcomes[-1], right)) for right in expected):
            return view
    for case in more:
        for formula, right in zip(formulas, expected, strict=True):
            right.append(outcome_of(formula, case))
        for view, results in zip(views, outcomes, strict=True):
            results.append(_outcome(view, case, expected[0][-1]))
    cases, faults = [*cases, *more], [*faults]
    singles = [(fault,) for fault in faults]
    # The first fault of each name is its usual form.
    usual = [*{fault.name: fault for fault in reversed(faults)}.values()][::-1]
    pairs = [
        pair
        for pair in combinations(usual, 2)
        if not pair[0].steps.keys() & pair[1].steps and {f.name for f in pair} != SAME_AS_AXIS
    ]
    seen = _without_copies(views, outcomes)
    for view, results in seen:
        _check_is_repeatable(view, cases, results, expected[0])
    for attempt in ("one fault", "one fault with measured numbers", "two faults"):
        for view, results in seen:
            combined: Sequence[tuple[Fault, ...]] = singles if attempt == "one fault" else pairs
            if attempt == "one fault with measured numbers":
                is_measurable = all(map(_have_equal_shapes, results, expected[0]))
                combined = [(fault,) for fault in measured(view)] if is_measurable else []
            for formula, right in zip(formulas, expected, strict=True):
                found = _explanations(combined, formula, cases, results)
                if 0 < len(found) <= MOST_NAMES:
                    raise _named(found, cases, results, right, what)
    view, results = _best(views, outcomes, expected[0])
    _check_uses_inputs(view, cases, results, expected[0], what)
    raise _unknown(cases, results, expected[0], what, lambda: hint(view))


def _without_copies(
    views: Sequence[View], outcomes: list[list[Array | Wrong]]
) -> list[tuple[View, list[Array | Wrong]]]:
    """Return the views with numbers, without those that give the same ones."""
    found: list[tuple[View, list[Array | Wrong]]] = []
    for view, results in zip(views, outcomes, strict=True):
        # A result without a finite number proves nothing.
        has_numbers = any(not isinstance(r, Wrong) and np.isfinite(r).any() for r in results)
        if has_numbers and not any(all(map(agree, results, other)) for _, other in found):
            found.append((view, results))
    return found


def _have_equal_shapes(result: Array | Wrong, right: Any) -> bool:
    return not isinstance(result, Wrong) and result.shape == right.shape


def _check_is_repeatable(
    view: View, cases: Sequence[Inputs], results: Sequence[Array | Wrong], right: Sequence[Any]
) -> None:
    """Raise `Wrong` if a second call with the same inputs gives another result."""
    case, result, expected = next(
        found
        for found in zip(cases, results, right, strict=True)
        if not isinstance(found[1], Wrong)
    )
    if not agree(_outcome(view, case, expected), result):
        raise Wrong(
            "not-repeatable",
            "A second call with the same inputs gave another result. The result must depend on the "
            "inputs alone: no random numbers, and no variables that keep something between calls.",
            look=r"rand|global|append|\+=",
        )


def _check_uses_inputs(
    view: View,
    cases: Sequence[Inputs],
    results: Sequence[Array | Wrong],
    right: Sequence[Any],
    what: str,
) -> None:
    """Raise `Wrong` if an input has no influence in any case."""
    known = [
        found
        for found in zip(cases, results, right, strict=True)
        if not isinstance(found[1], Wrong) and np.isfinite(found[1]).any()
    ]
    if len(known) < len(cases) / 2:
        return
    for name, array in cases[0].items():
        if (
            np.asarray(array).dtype.kind == "f"
            and known
            and all(
                agree(_outcome(view, {**case, name: 1.7 * case[name] + 0.3}, expected), result)
                for case, result, expected in known
            )
        ):
            raise Wrong(
                "input-unused",
                f"The {what} does not depend on {name}. Use this argument, not another "
                "one, and not a variable from outside of the function.",
                example=_example(cases, results, right, what),
            )


def outcome_of(formula: Any, case: Inputs) -> Array | Wrong:
    """Return the result of a formula; an error if the shapes are impossible for it."""
    with np.errstate(all="ignore"):
        try:
            return np.asarray(formula(**case))
        except Exception as error:  # a fault with impossible shapes
            return Wrong("error", str(error))


def _outcome(view: View, case: Inputs, right: Any) -> Array | Wrong:
    with np.errstate(all="ignore"):
        try:
            return view(case, right.shape)
        except Wrong as error:
            return error


def _explanations(
    combined: Iterable[tuple[Fault, ...]],
    formula: Any,
    cases: Sequence[Inputs],
    results: Sequence[Array | Wrong],
) -> dict[str, tuple[Fault, ...]]:
    """Return the faults that give these results, by name."""
    found: dict[str, tuple[Fault, ...]] = {}
    # One case with a result proves one fault, but not two.
    count = sum(not isinstance(result, Wrong) for result in results)
    for faults in combined:
        if count < len(faults):
            continue
        steps = {name: step for fault in faults for name, step in fault.steps.items()}
        faulty = replace(formula, **steps)
        if all(agree(outcome_of(faulty, case), r) for case, r in zip(cases, results, strict=True)):
            found.setdefault(" + ".join(fault.name for fault in faults), faults)
    return found


def _named(
    found: Mapping[str, tuple[Fault, ...]],
    cases: Sequence[Inputs],
    results: Sequence[Array | Wrong],
    right: Sequence[Any],
    what: str,
) -> Wrong:
    messages = []
    for faults in found.values():
        sentences = [fault.message for fault in faults]
        if len(faults) == 2:
            sentences = [f"Two mistakes. First: {sentences[0]}", f"Second: {sentences[1]}"]
        messages.append(" ".join(sentences))
    if len(found) > 1:
        messages[0] = f"Your result can come from different mistakes. {messages[0]}"
    look = "|".join(fault.look for faults in found.values() for fault in faults if fault.look)
    example = _example(cases, results, right, what)
    return Wrong(" or ".join(found), " Or: ".join(messages), look=look, example=example)


def _example(
    cases: Sequence[Inputs], results: Sequence[Array | Wrong], right: Sequence[Any], what: str
) -> Example | None:
    """Return the first case with a wrong result, preferably one of the right shape."""
    wrong = [
        (case, None if isinstance(result, Wrong) else result, expected)
        for case, result, expected in zip(cases, results, right, strict=True)
        if not agree(result, expected)
    ]
    if not wrong:
        return None
    case, result, expected = min(
        wrong, key=lambda entry: 2 if entry[1] is None else entry[1].shape != entry[2].shape
    )
    first = None
    if result is not None and result.shape == expected.shape:
        first = tuple(map(int, np.argwhere(wrong_cells(result, expected))[0]))
    inputs = {name: np.asarray(value) for name, value in case.items()}
    return Example(inputs, result, expected, first, what)


def _best(
    views: Sequence[View], outcomes: list[list[Array | Wrong]], right: Sequence[Any]
) -> tuple[View, list[Array | Wrong]]:
    """Return the view whose results are nearest to the right ones."""

    def score(pair: tuple[View, list[Array | Wrong]]) -> int:
        return sum(map(_have_equal_shapes, pair[1], right))

    return max(zip(views, outcomes, strict=True), key=score)


def _unknown(
    cases: Sequence[Inputs],
    results: list[Array | Wrong],
    right: Sequence[Any],
    what: str,
    hint: Callable[[], str],
) -> Wrong:
    example = _example(cases, results, right, what)
    assert example is not None  # some result is wrong
    result, expected = example.yours, example.right
    errors = [r for r in results if isinstance(r, Wrong)]
    if errors and isinstance(errors[0].__cause__, ArithmeticError):
        errors[0].example = example
        return errors[0]
    right_shapes = [*map(_have_equal_shapes, results, right)]
    if not all(right_shapes) and sum(map(agree, results, right)) == sum(right_shapes) > 0:
        message = f"Some sizes work, but with {_shapes(example.inputs)} "
        message += errors[0].message if errors else f"the {what} has the wrong shape"
        message += ". Take every size from the shape of the array that has it: no fixed numbers, "
        message += "and no other array."
        return Wrong("sizes", message, look=r"shape|len\(|= \d|arange|zeros|ones", example=example)
    if errors and not any(right_shapes):
        errors[0].example = example
        return errors[0]
    assert result is not None  # otherwise all are errors
    if result.shape != expected.shape:
        message = (
            f"The {what} has the shape {result.shape}, but it must have {expected.shape} "
            f"(for {_shapes(example.inputs)})."
        )
        return Wrong("shape", message, example=example)
    if not np.isfinite(result).all() and np.isfinite(expected).all():
        message = f"The {what} contains NaN or infinity. Look for a division by 0, 0 * infinity, "
        message += "log(0), the root of a negative number, rows whose scores are all -inf, and exp "
        message += "of a large number: the inputs are float32, where exp(89) is infinite and "
        message += "exp(-104) is 0."
        look = r"\* ?-?(\w+\.)?inf\b|-inf|log\(|sqrt\(\w+ @|~"
        return Wrong("nan", message, look=look, example=example)
    if errors:
        case = next(c for c, r in zip(cases, results, strict=True) if isinstance(r, Wrong))
        errors[0].message = f"With {_shapes(case)} {errors[0].message}"
        errors[0].example = example
        return errors[0]
    known_fault = _proportional(results, right, what)
    if known_fault is not None:
        return Wrong(*known_fault, look="return", example=example)
    cell = example.wrong
    assert cell is not None
    message = f"The {what} is wrong. The first wrong cell is {list(cell)}: it is {result[cell]:.4g}"
    message += f", but it must be {expected[cell]:.4g}."
    known = " ".join(filter(None, [_known_rows(results, right), hint()]))
    return Wrong("unknown", f"{message} {known}".strip(), example=example)


def _shapes(inputs: Inputs) -> str:
    return ", ".join(
        f"{name} {np.shape(value)}" if np.ndim(value) else f"{name} = {value}"
        for name, value in inputs.items()
    )


def _proportional(
    results: Sequence[Any], right: Sequence[Any], what: str
) -> tuple[str, str] | None:
    """Return the fault and its message if all results are nearly right, or right up to a factor."""
    pairs = [*zip(results, right, strict=True)]
    if any(r.shape != e.shape or not np.isfinite([r, e]).all() for r, e in pairs):
        return None
    result, expected = (np.concatenate([r.ravel() for r in rs]) for rs in (results, right))
    largest, difference = np.abs(expected).max(), result - expected
    if np.abs(difference).max() < 1e-2 * largest:
        return "precision", (
            f"The {what} is nearly right: the largest difference is {np.abs(difference).max():.2g}."
            " Do not round, compute with float32 or float64, and do not add numbers to avoid a "
            "division by 0."
        )
    factor = float(result @ expected / (expected @ expected))
    if np.abs(result - factor * expected).max() < TOLERANCE * np.abs(result).max():
        message = (
            f"All numbers of the {what} are {factor:.4g} times what they must be. Remove this "
        )
        return "factor", f"{message}factor."
    if np.ptp(difference) < TOLERANCE * largest:
        return "offset", f"All numbers of the {what} are too large by {difference.mean():.4g}."
    return None


def _known_rows(results: Sequence[Any], right: Sequence[Any]) -> str:
    """Say which rows are right in all cases, if only some are."""
    firsts, lasts = [], []
    for result, expected in zip(results, right, strict=True):
        if expected.ndim < 2 or isinstance(result, Wrong) or result.shape != expected.shape:
            return ""
        cells = wrong_cells(result, expected).reshape((len(expected), -1))
        rows = np.asarray(cells.any(axis=1))
        firsts.append(not rows[0])
        lasts.append(not rows[-1])
    if all(firsts) and not all(lasts):
        return "The first row is right in all tests; look at what differs in later rows."
    if all(lasts) and not all(firsts):
        return "The last row is right in all tests; look at what differs in earlier rows."
    return ""
