"""Find out how an attention can be called: its library, precision, length and sizes."""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from headway.check.declaration import Declaration
from headway.check.derivatives import output_at, unit, variables
from headway.check.errors import Refused
from headway.check.layouts import to_layout
from headway.check.libraries import LIBRARIES, Torch, undisturbed
from headway.check.modules import is_module
from headway.check.subject import Subject, call_directly

NOT_FINITE = "numbers that are not finite"
LENGTHS = (33, 16, 8, 6, 4)  # numbers of tokens to try; a module may be built for a short context


def subject_of(
    attention: Any, declared: Declaration, call: Callable[..., Any] = call_directly
) -> Subject:
    """Call the attention with random inputs until it returns a valid output.

    Tries the declared library or, by default, every imported one, with each precision and length.
    If all calls fail, `problem` of the subject contains the errors.
    Raises ValueError if the width or the vocabulary is neither declared nor detected.
    """
    sizes = (
        declared.width or _width(attention, declared),
        declared.vocabulary or _vocabulary(attention, declared),
    )
    if declared.kind == "model" and sizes[1] < 2:
        raise ValueError("vocabulary must be >= 2, because the checks change tokens (got 1)")
    named = "torch" if is_module(attention) else declared.engine
    problems: list[str] = []
    first: Subject | None = None  # with the right shape, but not finite
    for name in [named] if named else [name for name in LIBRARIES if name in sys.modules]:
        device = _device(attention, declared)
        library = Torch(device) if name == "torch" else LIBRARIES[name]()
        precisions = dict.fromkeys((declared.precision, "float32"))
        with undisturbed(library):
            for dtype, longest in product(precisions, LENGTHS):
                subject = Subject(attention, declared, call, library, *sizes, dtype, longest)
                try:
                    _try(subject, must_belong=named is None)
                except Refused as error:
                    problem, trace = str(error), error.trace
                    if error.is_slow:
                        return replace(subject, problem=problem, trace=trace)
                    if NOT_FINITE in problem and first is None:
                        first = replace(subject, problem=problem)
                else:
                    return _with_rounding(subject)
        problems.append(problem if named else f"{problem} (with {name})")
    if first is not None:
        return first
    return replace(subject, problem="; ".join(dict.fromkeys(problems)), trace=trace)


def width_of(attention: Any) -> int | None:
    """Return the number of features of a token, from an attribute or a linear layer, or None."""
    for name in ("embed_dim", "d_model", "d_in", "hidden_size", "width"):
        if isinstance(getattr(attention, name, None), int):
            return int(getattr(attention, name))
    modules = attention.modules() if hasattr(attention, "modules") else ()
    widths = (getattr(module, "in_features", None) for module in modules)
    return next((int(width) for width in widths if isinstance(width, int)), None)


def _try(subject: Subject, must_belong: bool) -> None:
    """Call the attention once.

    Raises `Refused` if the output has the wrong shape or is not finite. must_belong: also if the
    attention belongs to another library; then it fails for the inputs of `Library.bait`, or returns
    arrays of another library.
    """
    declared, tokens = subject.declared, subject.longest
    inputs = subject.inputs(tokens)
    if must_belong:
        bait = [subject.library.bait(array, subject.dtype) for array in to_layout(declared, inputs)]
        subject.output(bait, {})
    output = subject.run(inputs)
    rows: tuple[Any, ...] = (2, declared.heads, tokens) if subject.kind == "qkv" else (2, tokens)
    features = {"qkv": declared.head_dim, "self": output.shape[-1], "model": subject.vocabulary}
    if output.shape != (*rows, features[subject.kind]):
        last = "features" if subject.kind == "self" else features[subject.kind]
        expected = str((*rows, last)).replace("'", "")
        raise Refused(f"returned an array of shape {output.shape}; expected {expected}")
    if not np.isfinite(output).all():
        finite = np.isfinite(np.moveaxis(output, -2, 0))
        first = int(np.argwhere(~finite)[:, 0].min())
        raise Refused(f"returns {NOT_FINITE} from token {first} on")


def _with_rounding(subject: Subject) -> Subject:
    """Use float32 inputs if a part of the attention, such as a norm, rounds to float32.

    The second difference of the outputs at three points is measured for two distances. Without
    rounding it grows with the square of the distance, here by a factor of 10,000. With rounding it
    grows less or, if the rounding is coarse, it is 0 for the shorter distance.
    """
    inputs = subject.inputs(subject.few_tokens)
    random = np.random.default_rng(7)
    second_differences = []
    try:
        first, *others = variables(subject, inputs)
        for distance in (1e-6, 1e-4):
            shift = distance * unit(subject) * random.normal(size=first.shape)
            center, before, after = (
                output_at(subject, inputs, [first + sign * shift, *others]) for sign in (0, -1, 1)
            )
            second = np.abs(before + after - 2 * center).max()
            second_differences.append(float(second / np.abs(center).max()))
    except Refused:  # no embedding to shift
        return subject
    short, long = second_differences
    if (short > 1e-9 and long < 1e3 * short) or (long > 1e-5 and long > 1e5 * short):
        return replace(subject, rounding=max(second_differences), dtype="float32")
    return subject


def _device(attention: Any, declared: Declaration) -> str:
    parameters = attention.parameters() if is_module(attention) else ()
    return next((str(parameter.device) for parameter in parameters), declared.device)


def _width(attention: Any, declared: Declaration) -> int:
    width = width_of(attention) if declared.kind == "self" else 0
    if width is None and is_module(attention):
        width = _width_that_runs(attention, declared)
    if width is None:
        raise ValueError("the width is unknown: declare it, for example width=64 (--width 64)")
    return width


def _width_that_runs(module: Any, declared: Declaration) -> int | None:
    """Return the first size of a parameter with which a module runs, or None."""
    library = Torch(_device(module, declared))
    sizes = dict.fromkeys(size for p in module.parameters() for size in p.shape if size > 1)
    for size, tokens in product(sizes, LENGTHS):
        trial = Subject(module, declared, call_directly, library, size, 0, "float32", tokens)
        try:
            with undisturbed(library):
                trial.run(trial.inputs(tokens))
        except Refused:
            continue
        return int(size)
    return None


def _vocabulary(attention: Any, declared: Declaration) -> int:
    if declared.kind != "model":
        return 0
    for module in attention.modules() if is_module(attention) else ():
        if isinstance(getattr(module, "num_embeddings", None), int):
            return int(module.num_embeddings)
    raise ValueError(
        "the vocabulary is unknown: declare it, for example vocabulary=1000 (--vocabulary 1000)"
    )
