"""Checks of numerics: errors, repeatability, memory layouts, precision, derivatives, dropout."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from headway.attention.formula import attention
from headway.attention.masks import causal
from headway.attention.spec import Spec
from headway.check.core import Core, core_of
from headway.check.declaration import Declaration
from headway.check.derivatives import (
    gradients,
    has_influence,
    output_at,
    unit,
    unused_parameters,
    variables,
)
from headway.check.errors import Refused
from headway.check.findings import Outcome, not_applicable, not_tested, verdict
from headway.check.libraries import undisturbed
from headway.check.modules import converted
from headway.check.probe import NOT_FINITE, subject_of
from headway.check.properties.check import digits, gap, promises, unless
from headway.check.subject import Subject


@promises("it runs as declared")
def runs(subject: Subject) -> Outcome:
    if subject.problem:
        return Outcome(
            "fail",
            f"it {subject.problem}",
            "an output for random inputs",
            *_why_not(subject.problem),
            subject.trace,
        )
    tokens = subject.few_tokens
    inputs = subject.inputs(tokens)
    trials: dict[str, dict[str, Any]] = {
        "mask": {"mask": np.arange(tokens) < np.array([[tokens], [tokens - 1]])},
        "causal": {"causal": True},
        "window": {"window": tokens, **subject.causal_options},
        "softcap": {"softcap": 5.0},
        "positions": {"positions": np.arange(tokens)},
        "documents": {"documents": np.zeros((2, tokens), np.int64)},
    }
    if subject.kind == "qkv":
        trials["dropout"] = {"dropout": 0.0}
    features = [name for name in trials if name in subject.declared.features]
    problems, shape = [], subject.run(inputs).shape
    trace: tuple[str, ...] = ()
    for name in features:
        try:
            out = subject.run(inputs, **trials[name])
        except Refused as error:
            problems.append(f"with {name} it {error}")
            trace = error.trace
            continue
        if out.shape != shape:
            problems.append(f"with {name} its shape is {out.shape}")
        elif not np.isfinite(out).all():
            problems.append(f"with {name} its output is NaN or infinite")
    names = ", ".join(features)
    if not problems:
        return Outcome("pass", "runs" + (f", also with {names}" if names else ""))
    return Outcome(
        "fail",
        "; ".join(problems),
        f"finite numbers of shape {shape}",
        "the output becomes NaN or infinite: a row of the softmax with all keys hidden, or +inf "
        "instead of -inf (a wrong sign)"
        if all("NaN" in problem for problem in problems)
        else "it does not run as declared",
        "declare only the features that it has; wrap it if their names differ",
        trace,
    )


def _why_not(problem: str) -> tuple[str, str]:
    """Return the likely reason why the attention does not run, and what to do."""
    if NOT_FINITE in problem:
        return (
            "parameters are not finite, or a query has all its keys masked: a reversed mask, tril "
            "instead of triu, or diagonal=0 instead of 1",
            "torch.triu(ones, diagonal=1) marks what to hide",
        )
    if "CUDA" in problem or "NVIDIA" in problem or "HIP" in problem:
        return (
            "it needs a GPU, which is not available here",
            "create tensors on the device of the inputs: torch.ones(..., device=x.device)",
        )
    if "did not return" in problem:
        return (
            "it hangs, or is too slow for a text of 33 tokens",
            "see the line where it was stopped",
        )
    if "required" in problem and "argument" in problem:
        return (
            "it needs arguments that are not declared",
            "declare them if they are features (--features mask), or wrap it: diagnose(..., "
            "call=lambda attention, x: attention(x, ...))",
        )
    if "returned" in problem:
        return (
            "its output is not the expected array",
            "return one array, or a tuple that begins with it, of the shape of the inputs",
        )
    return (
        "its code raised an error for inputs of the declared shapes: a bug at the line below, or "
        "kind, layout, heads, width, vocabulary or engine are others (a text of 4 tokens must fit)",
        "correct this line, or declare the shapes that it expects; see `headway check --help`",
    )


@promises("evaluation is repeatable", look=r"[dD]ropout|bernoulli|rand\w*\(|kept|cache")
def repeatable(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    # Not compiled, because jit would fix random numbers and state.
    first = subject.run(inputs, compiled=False)
    subject.run(subject.inputs(subject.few_tokens, seed=1), compiled=False)  # may leave a state
    second, third = (subject.run(inputs, compiled=False) for _ in range(2))
    same = np.array_equal(first, second) and np.array_equal(first, third)
    seeded = []
    for seed in (0, 1):  # after another call
        with undisturbed(subject.library):
            subject.run(subject.inputs(subject.few_tokens, seed=seed), compiled=False)
        with undisturbed(subject.library):
            seeded.append(subject.run(inputs, compiled=False))
    worst = max(gap(second, first), gap(third, first))
    return verdict(
        same,
        "three calls give identical outputs" if same else f"three calls differ by {digits(worst)}",
        "identical outputs in evaluation mode",
        "dropout is active in evaluation mode, or other random numbers are drawn"
        if np.array_equal(seeded[0], seeded[1])
        else "a state survives the call: the output depends on earlier calls",
        "F.dropout(weights, p, training=self.training); keep no tensors between calls",
    )


@promises("every parameter has a gradient", "self", "model", look=r"self\.\w+\(|detach|no_grad")
def used(subject: Subject) -> Outcome:
    if subject.module is None:
        return not_tested("only modules of PyTorch have parameters")
    count, unused = unused_parameters(subject)
    names = ", ".join(map(str, unused[:4]))
    is_detached = bool(unused) and has_influence(subject, unused)
    return verdict(
        not unused,
        f"{len(unused)} of {count} parameters have no gradient" + f" ({names})" * bool(unused),
        "all have a gradient",
        f"no gradient reaches {names}, although the output depends on it: a tensor is detached, or "
        "computed with no_grad"
        if is_detached
        else f"{names} is never used, it has no influence on the output: the layer is not called, "
        "another one is called in its place, or its result is thrown away",
        "remove detach(), .data and no_grad"
        if is_detached
        else "x = self.out(x), not self.out(x); each of query, key and value from its own matrix",
    )


@promises("the inputs stay unchanged", look=r"[-+*/]=|_\(|\[.*\] =")
def untouched(subject: Subject) -> Outcome:
    tokens, options = subject.few_tokens, dict(subject.causal_options)
    if "mask" in subject.declared.features:
        options["mask"] = np.arange(tokens) < np.array([[tokens], [tokens - 1]])
    native = subject.native(subject.inputs(tokens), subject.dtype)
    native_options = subject.native_options(options)
    arrays = [*native, *filter(subject.library.is_array, native_options.values())]
    before = [subject.library.numpy(array) for array in arrays]
    subject.output(native, native_options)
    same = all(map(np.array_equal, map(subject.library.numpy, arrays), before))
    return verdict(
        same,
        f"the inputs are {'unchanged' if same else 'changed'} after the call",
        "unchanged",
        "an in-place operation writes to the arrays of the caller",
        "queries = queries * scale, not queries *= scale; masked_fill, not masked_fill_",
    )


@promises(
    "the memory layout of inputs does not matter",
    "qkv",
    "self",
    look=r"view|strided|contiguous|ravel",
)
def strided(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    if subject.library.name == "jax":
        return not_applicable("its inputs have only one memory layout")
    base = subject.run(inputs)
    try:
        worst = gap(subject.run(inputs, arranged=subject.library.strided), base)
        repeated = [np.repeat(array[:1], len(array), axis=0) for array in inputs]
        expanded = subject.run(inputs, arranged=subject.library.expanded)
        worst = max(worst, gap(expanded, subject.run(repeated)))
        measured = f"strided or expanded inputs change the outputs by {digits(worst)}"
    except Refused as error:
        worst, measured = float("inf"), f"with strided or expanded inputs it {error}"
    return verdict(
        worst <= subject.tolerance,
        measured,
        "0: only the values of the inputs matter",
        "it assumes contiguous inputs, for example in view, as_strided or a kernel",
        "reshape instead of view, or contiguous() first",
    )


@promises("errors in low precision are small", look=r"dtype|float|half|bfloat16|\.to\(|astype")
def precise(subject: Subject) -> Outcome:
    """Compare errors with a bound: twice the error of the plain formula, plus rounding."""
    if subject.rounding > 1e-5:
        return verdict(
            False,
            f"with float64 inputs the relative error is {digits(subject.rounding)}",
            "at most that of float32",
            "intermediate results are rounded to a lower precision than float32",
            "softmax and sums in float32 (or the inputs' precision, if that is higher)",
        )
    inputs = subject.inputs(subject.few_tokens)
    worst, at, errors = 0.0, "", []
    formula = _formula(subject) if _has_formula(subject) else subject
    for dtype in subject.library.precisions:
        if dtype == subject.dtype and not _has_formula(subject):
            continue  # there is no more precise result to compare with
        try:
            ratios = _errors(subject, formula, inputs, dtype)
        except Refused as error:
            errors.append(f"{dtype}: {error}")
            continue
        for i, ratio in enumerate(ratios):
            name = f"gradient {i}" if i else "output"
            worst, at = max((worst, at), (ratio, f"{dtype}, {name}"))
    if not at:
        return not_tested("; ".join(errors))
    rule = "twice the error of the plain formula + 4 eps" if _has_formula(subject) else "32 eps"
    return verdict(
        worst <= 1,
        f"the largest error is {digits(worst)} times the bound ({at})"
        + "".join(f"; not run in {error}" for error in errors),
        f"at most 1; the bound is {rule} times the largest number",
        "intermediate results are rounded: a softmax or a sum in lower precision than the inputs",
        "softmax and sums in float32 (or the inputs' precision, if that is higher)",
    )


def _errors(
    subject: Subject, formula: Subject, inputs: list[np.ndarray], dtype: str
) -> list[float]:
    """Return the largest errors of the output and of each gradient, divided by their bounds."""
    library, eps = subject.library, {"float32": 2.0**-23, "bfloat16": 2.0**-7}[dtype]
    if subject.kind != "model":
        inputs = [library.numpy(library.array(array, dtype)) for array in inputs]
    reference = _rounded(subject, dtype) if subject.dtype == "float64" else formula
    exact_results = _results(reference, inputs, reference.dtype)
    results = _results(subject, inputs, dtype)
    has_formula = _has_formula(subject)
    plain_results = _results(formula, inputs, dtype) if has_formula else exact_results
    slack = 4 if has_formula else 32
    ratios = []
    for result, plain, exact in zip(results, plain_results, exact_results, strict=False):
        bound = 2 * np.abs(plain - exact).max() + slack * eps * np.abs(exact).max()
        error = np.abs(result - exact).max()
        ratios.append(float(error / bound) if np.isfinite(error) else float("inf"))
    return ratios


def _rounded(subject: Subject, dtype: str) -> Subject:
    """Round the parameters of a module to a precision; a function stays as it is."""
    if subject.module is None:
        return subject
    if subject.attention_in(subject.dtype) is subject.module:
        raise Refused("cannot be copied")
    module = converted(copy.deepcopy(subject.module), dtype)
    return replace(subject, attention=converted(module, subject.dtype))


def _results(subject: Subject, inputs: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Return the output and, if the library has gradients, the gradients of its weighted sum."""
    out = subject.run(inputs, dtype=dtype, **subject.causal_options)
    # Multiples of 1/8, which are exact in every precision.
    weight = np.round(8 * np.cos(np.arange(out.size) + 1.0)).reshape(out.shape) / 8
    try:
        return [out, *gradients(subject, inputs, weight, dtype=dtype, **subject.causal_options)]
    except Refused:
        return [out]


def _has_formula(subject: Subject) -> bool:
    """Whether the plain formula computes the same as the attention, if that is right."""
    declared = subject.declared
    return subject.kind == "qkv" and unless(*UNUSUAL)(subject) is None and not declared.positions


UNUSUAL = ("window", "prefix", "pattern", "sinks", "scale", "softcap", "qk_norm", "normalizer")


def _formula(subject: Subject) -> Subject:
    """Return the plain formula as a subject with the same library and sizes."""
    mask = causal if subject.declared.always_causal or subject.causal_options else None
    sizes = ("heads", "kv_heads", "head_dim", "device")
    declared = {name: getattr(subject.declared, name) for name in sizes}
    declared |= {"kind": "qkv", "engine": subject.library.name}
    return subject_of(partial(attention, spec=Spec(mask=mask)), Declaration.of(**declared))


@promises("gradients are the derivatives of the output", look=r"backward|detach|grad")
def derivative(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    values = variables(subject, inputs)
    random = np.random.default_rng(5)
    weight = random.normal(size=subject.run(inputs, **subject.causal_options).shape)
    slopes = gradients(subject, inputs, weight, **subject.causal_options)

    def shifted(i: int, shift: np.ndarray) -> np.ndarray:
        """Return the output with one input shifted."""
        moved = [*values[:i], values[i] + shift, *values[i + 1 :]]
        return output_at(subject, inputs, moved, **subject.causal_options)

    # In float32 a small step would be lost in rounding.
    step, limit = (3e-3, 3e-3) if subject.dtype == "float32" else (1e-6, 1e-5)
    size = unit(subject)

    def difference(i: int, direction: np.ndarray) -> float:
        """Return the relative difference of gradient and difference quotient in a direction."""
        ends = shifted(i, step * direction) - shifted(i, -step * direction)
        numeric = float((ends * weight).sum()) / (2 * step)
        computed, norm = float((slopes[i] * direction).sum()), np.linalg.norm(size * slopes[i])
        return abs(numeric - computed) / max(abs(numeric), float(norm), 1e-12)

    # One input at a time, so that no other gradient hides a wrong one. The best of three
    # directions, because one of them may cross the kink of a ReLU.
    worst = max(
        min(difference(i, size * random.normal(size=value.shape)) for _ in range(3))
        for i, value in enumerate(values)
    )
    if not all(np.isfinite(slope).all() for slope in slopes):
        worst = float("inf")
    return verdict(
        worst <= limit,
        f"the gradient and a difference quotient differ by {digits(worst)}",
        f"at most {limit:g}: the gradient is the output's derivative",
        "the backward pass does not match the forward pass: a custom backward is wrong, or a "
        "tensor is detached",
        "compare with torch.autograd.gradcheck; d softmax = w * (g - sum(w * g))",
    )


@promises(
    "dropout drops the requested share and rescales the rest",
    needs=("dropout",),
    look="dropout|bernoulli|rand",
)
def dropout(subject: Subject) -> Outcome:
    if subject.kind == "qkv":
        tokens = min(subject.declared.head_dim, subject.longest)
        inputs = subject.inputs(tokens)
        options: dict[str, Any] = {"dropout": RATE, "compiled": False}
        samples = np.array([subject.weights(inputs, **options) for _ in range(DRAWS)])
        outputs = subject.run(inputs, **options)
        return _dropout(subject.weights(inputs), samples, RATE, float((outputs == 0).mean()))
    core = core_of(subject)
    if core is not None:
        weights, samples = _weights_of_module(core, subject)
        if np.isfinite(samples).all() and np.ptp(samples, axis=0).any():
            return _dropout(weights, samples, None, 0.0)
    return _dropout_of_module(subject)


RATE, DRAWS = 0.25, 60


def _weights_of_module(core: Core, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Return weights of evaluation and samples of training.

    Feature f of the values is 1 at token f modulo 4, so that it shows the weight of this token.
    """
    random = np.random.default_rng(13)
    queries, keys, values = (random.normal(size=(2, 4, width)) for width in core.widths)
    values[:] = np.arange(core.widths[2]) % 4 == np.arange(4)[:, None]
    inputs = (queries, keys, values)
    samples = [core.run(*inputs, train=True) for _ in range(DRAWS)]
    return core.run(*inputs), np.array(samples)


def _dropout(weights: np.ndarray, samples: np.ndarray, rate: float | None, zeros: float) -> Outcome:
    """Judge samples of weights with dropout.

    weights: those without dropout. rate: the requested one; None if it is unknown, as in a module.
    zeros: the share of the outputs that are 0 for random values.
    """
    cells = weights > 1e-6
    dropped = (np.abs(samples) < 1e-12)[:, cells]
    share = float(dropped.mean())
    expected = share if rate is None else rate
    deviation = (expected * (1 - expected) / dropped.size) ** 0.5
    kept = (samples / np.where(cells, weights, 1))[:, cells][~dropped]
    factor = float(np.median(kept)) if kept.size else float("nan")
    uniform = kept.size > 0 and gap(kept, np.full_like(kept, factor)) < 1e-6
    # One random number for several cells increases the variance of the share.
    pattern = dropped.astype(float)
    spread_of_calls = pattern.mean(axis=1).std() * (pattern.shape[1] / max(share, 1e-9)) ** 0.5
    spread_of_calls /= max(1 - expected, 1e-9) ** 0.5
    spread_of_cells = pattern.mean(axis=0).std() * (len(pattern) / max(share, 1e-9)) ** 0.5
    spread_of_cells /= max(1 - expected, 1e-9) ** 0.5
    right_rate = rate is None or abs(share - rate) < 6 * deviation
    # In a module the rate is known by the dropped share only.
    slack = 1e-6 if rate is not None else 8 * deviation / max(1 - expected, 1e-9) + 1e-6
    rescaled = uniform and abs(factor * (1 - expected) - 1) < slack
    # In a module several features show the same cell.
    axes = {1: "batch rows", 2: "heads", 3: "queries (rows)", 0: "calls"}
    zero = np.abs(samples) < 1e-12
    shared = [
        name
        for axis, name in axes.items()
        if samples.shape[axis] > 1 and (zero == zero.take([0], axis)).all()
    ]
    independent = rate is None or not (shared or spread_of_calls >= 1.5 or spread_of_cells >= 1.5)
    sums_to_one = gap(samples.sum(axis=-1), np.ones(samples.shape[:-1])) < 1e-6
    if share == 0 and not np.ptp(samples, axis=0).any():
        diagnosis = "dropout does nothing"
    elif share < 0.5 * expected or share == 0:
        diagnosis = (
            "weights vary, but none is 0: dropout comes before the softmax, on the scores, or "
        )
        diagnosis += "on queries and keys, not on the weights"
    elif rate is not None and abs(share - (1 - rate)) < 6 * deviation:
        diagnosis = f"the dropped share is {share:.3f}: the rate is used as the share to keep"
    elif rate is not None and abs(share - 1 + (1 - rate) ** 2) < 6 * deviation:
        diagnosis = f"the dropped share is {share:.3f}: dropout is applied twice"
    elif not right_rate:
        diagnosis = f"the dropped share is {share:.3f}, another one than requested"
    elif not independent:
        diagnosis = "cells are not independent: several rows, heads or calls share random numbers"
        if shared:
            diagnosis = (
                f"one draw is shared by all {' and '.join(shared)}: their weights are dropped "
            )
            diagnosis += "in the same cells"
    elif not uniform and rate is not None and sums_to_one:
        diagnosis = (
            "the weights that are kept are normalized to 1 again, so that their mean is not "
        )
        diagnosis += "that of evaluation"
    elif not uniform:
        diagnosis = "kept weights have different factors: dropout comes before the softmax, or the "
        diagnosis += "kept weights are normalized again"
    elif abs(factor - 1) < 1e-6:
        diagnosis = "survivors are not rescaled by 1/(1-p)"
    else:
        diagnosis = f"survivors are multiplied by {factor:.4g} instead of 1/(1-p)"
    if zeros > 0.5 * expected > 0 and right_rate:
        diagnosis = "dropout is applied to the output instead of the weights"
        independent = False
    return verdict(
        right_rate and rescaled and independent,
        f"{share:.3f} of the weights are 0 and the rest are multiplied by {factor:.4g}"
        + (f" (p={rate})" if rate is not None else ""),
        f"the share p, independently for each cell, and 1/(1-p) = {1 / (1 - expected):.4g}",
        diagnosis,
        "F.dropout(weights, p, training=self.training) after the softmax",
    )


def _dropout_of_module(subject: Subject) -> Outcome:
    draws = 120
    inputs = subject.inputs(subject.few_tokens)
    expected = subject.run(inputs)
    samples = np.array([subject.run(inputs, train=True) for _ in range(draws)])
    differs = bool(np.ptp(samples, axis=0).any())
    # If the output is linear in the weights, its mean is that of evaluation.
    standard_error = samples.std(axis=0) / (draws - 1) ** 0.5
    errors = np.abs(samples.mean(axis=0) - expected)
    deviations = float((errors / np.maximum(standard_error, 1e-12)).max())
    # If most samples drop nothing, the others are too few to estimate the mean.
    mostly_dropped = float((np.abs(samples - expected) > subject.noise).mean()) > 0.6
    linear = subject.kind == "self" and not subject.declared.block and mostly_dropped
    return verdict(
        differs and (not linear or deviations < 7),
        f"while training, outputs {'differ' if differs else 'do not differ'} between calls"
        + (f"; their mean is {deviations:.1f} standard errors from evaluation" if linear else ""),
        "outputs differ" + ("; their mean is within 7 standard errors" if linear else ""),
        "survivors are not rescaled by 1/(1-p), or weights are dropped before the softmax"
        if differs
        else "dropout was declared, but does nothing",
        "F.dropout(weights, p, training=self.training) after the softmax",
    )


@promises(
    "the loss is the cross-entropy of the next token",
    "model",
    needs=("labels",),
    look=r"cross_entropy|labels|targets|nll",
)
def labels(subject: Subject) -> Outcome:
    inputs = subject.inputs(subject.few_tokens)
    logits, (tokens,) = subject.run(inputs), inputs
    (native,) = subject.native(inputs, subject.dtype)
    claimed = float(subject.library.numpy(subject.output([native], {"labels": native})))
    logs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    count = tokens.shape[-1]
    by_shift = {}
    for shift in (-1, 0, 1, 2):
        at = np.arange(max(0, -shift), min(count, count - shift))
        of_tokens = np.take_along_axis(logs[:, at], tokens[:, at + shift, None], axis=-1)
        by_shift[shift] = -float(of_tokens.mean())
    nearest = min(by_shift, key=lambda shift: abs(by_shift[shift] - claimed))
    off = abs(by_shift[1] - claimed) / by_shift[1]
    known = {
        0: "logits[t] predict token t: the labels are not shifted, so the model learns to copy",
        2: "logits[t] predict token t + 2: the labels are shifted twice",
        -1: "logits[t] predict token t - 1: the labels are shifted in the wrong direction",
    }
    matches = abs(by_shift[nearest] - claimed) / by_shift[nearest] <= 1e-3
    return verdict(
        off <= 1e-5,
        f"its loss is {claimed:.5g}; that of the next token is {by_shift[1]:.5g}",
        "the mean of -log p(token t + 1) from logits[t]",
        known.get(nearest, "")
        if matches and nearest != 1
        else "the loss is not the mean over next tokens",
        "cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",
    )


@promises("tied weights stay tied", "model", needs=("tied",), look=r"\.weight|load_state|tie")
def tied(subject: Subject) -> Outcome:
    if subject.module is None:
        return not_tested("only modules of PyTorch have parameters")

    def shared(module: Any) -> list[str]:
        names: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return [" = ".join(group) for group in names.values() if len(group) > 1]

    before = shared(subject.module)
    state = {name: value.clone() for name, value in subject.module.state_dict().items()}
    again = copy.deepcopy(subject.module)
    for parameter in again.parameters():
        parameter.zero_()
    again.load_state_dict(state)  # as from a file: no two tensors share memory
    after = shared(again)
    inputs = subject.inputs(subject.few_tokens)
    other = replace(subject, attention=again)
    worst = gap(other.run(inputs), subject.run(inputs))
    good = bool(before) and after == before and worst <= subject.tolerance
    return verdict(
        good,
        f"shared: {'; '.join(before) or 'none'}; after loading: {'; '.join(after) or 'none'}; "
        f"outputs differ by {digits(worst)}",
        "the embedding and the output layer share one weight, also after loading",
        "they are not tied: the output layer has another weight, perhaps a copy"
        if not before
        else "loading unties them: a parameter is replaced instead of written in place"
        if after != before
        else "the saved weights do not restore the model",
        "self.head.weight = self.embedding.weight, and again after loading with assign=True",
    )


CHECKS = (used, untouched, strided, precise, derivative, dropout, labels, tied)
