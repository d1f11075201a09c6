"""It runs, again and again, in every precision and memory layout, with right derivatives.

Each function is a check; what it promises stands in the table at the end.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np

from headway.attention.formula import attention as plain
from headway.attention.masks import causal
from headway.attention.spec import Spec
from headway.check.findings import Outcome, not_applicable, unsupported, verdict
from headway.check.properties.check import ALL, Check, few, floor, gap, shown
from headway.check.subjects import NOT_FINITE, Declaration, Refused, Subject


def runs(subject: Subject) -> Outcome:
    if subject.problem:
        return verdict(
            False,
            f"it {subject.problem}",
            "an output for random inputs",
            "parameters are not finite, or some query has all its keys hidden: a mask reversed, "
            "tril for triu, or diagonal=0 for 1"
            if NOT_FINITE in subject.problem
            else "it does not run as declared: kind, layout, heads, width, vocabulary or engine "
            "may be others; a text of 4 tokens must fit",
            "call it by hand with the shapes declared; see `headway check --help`",
        )
    tokens = few(subject)
    inputs = subject.inputs(tokens)
    trials: dict[str, dict[str, Any]] = {
        "mask": {"mask": np.arange(tokens) < np.array([[tokens], [tokens - 1]])},
        "causal": {"causal": True},
        "window": {"window": tokens, **subject.causal},
        "softcap": {"softcap": 5.0},
        "positions": {"positions": np.arange(tokens)},
        "documents": {"documents": np.zeros((2, tokens), np.int64)},
    }
    if subject.kind == "qkv":
        trials["dropout"] = {"dropout": 0.0}
    features = [name for name in trials if name in subject.declared.features]
    problems, shape = [], subject.run(inputs).shape
    for name in features:
        try:
            out = subject.run(inputs, **trials[name])
        except Refused as error:
            problems.append(f"with {name} it {error}")
            continue
        if out.shape != shape:
            problems.append(f"with {name} its shape is {out.shape}")
        elif not np.isfinite(out).all():
            problems.append(f"with {name} its output is not finite")
    said = ", ".join(features)
    return verdict(
        not problems,
        "; ".join(problems) or "runs" + (f", with {said} too" if said else ""),
        f"finite numbers of shape {shape}",
        "it does not run as declared",
        "declare only the features that it has, under their names; wrap it where they differ",
    )


def repeatable(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    # Not compiled: that would run its lines once, and what they drew or kept would be fixed.
    first = subject.run(inputs, compiled=False)
    subject.run(subject.inputs(few(subject), seed=1), compiled=False)  # leaves its own behind
    second, third = (subject.run(inputs, compiled=False) for _ in range(2))
    same = np.array_equal(first, second) and np.array_equal(first, third)
    worst = max(gap(second, first), gap(third, first))
    return verdict(
        same,
        "three calls give the same bits" if same else f"three calls differ by {shown(worst)}",
        "the same bits each time, in evaluation",
        "dropout is live at evaluation, or a state survives the call",
        "F.dropout(weights, p, training=self.training); keep no tensors between calls",
    )


def used(subject: Subject) -> Outcome:
    if subject.module is None:
        return unsupported("only modules of PyTorch hold parameters that can be seen")
    count, unused = subject.unused()
    return verdict(
        not unused,
        f"{len(unused)} of {count} parameters take no part"
        + f" ({', '.join(unused[:4])})" * bool(unused),
        "all take part in the output",
        "a layer is not used, or its result is lost: made and not called, called and not assigned, "
        "another used in its place, or detached",
        "x = self.out(x), not self.out(x); each of query, key and value from its own matrix",
    )


def untouched(subject: Subject) -> Outcome:
    tokens, options = few(subject), dict(subject.causal)
    if "mask" in subject.declared.features:
        options["mask"] = np.arange(tokens) < np.array([[tokens], [tokens - 1]])
    same = subject.untouched(subject.inputs(tokens), **options)
    return verdict(
        same,
        f"the inputs are {'as they were' if same else 'changed'} after the call",
        "as they were",
        "an operation in place writes into the caller's arrays",
        "queries = queries * scale, not queries *= scale; masked_fill, not masked_fill_",
    )


def strided(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    if subject.kind == "model" or subject.engine.name == "jax":
        return not_applicable("there is nothing that could lie otherwise in memory")
    base = subject.run(inputs)
    try:
        worst = gap(subject.run(inputs, strided=True), base)
        alike = [np.repeat(each[:1], len(each), axis=0) for each in inputs]
        worst = max(worst, gap(subject.run(inputs, expanded=True), subject.run(alike)))
        measured = f"the same values, strided or expanded, change the outputs by {shown(worst)}"
    except Refused as error:
        worst, measured = float("inf"), f"with strided or expanded inputs it {error}"
    return verdict(
        worst <= subject.tolerance,
        measured,
        "nothing",
        "it reads memory, not values: view, as_strided or a kernel that assumes contiguous inputs",
        "reshape instead of view, or contiguous() first",
    )


def precise(subject: Subject) -> Outcome:
    """The design's bound: twice the plain mechanism's error, and a little for rounding."""
    if subject.rounding > 1e-5:
        return verdict(
            False,
            f"float64 comes out rounded by {shown(subject.rounding)} of the largest number",
            "at most that of float32",
            "numbers are rounded on the way to less than float32, whatever comes in",
            "softmax and sums in float32 (or the inputs' precision, if that is higher)",
        )
    inputs = subject.inputs(few(subject))
    worst, at, refused = 0.0, "", []
    mechanism = _plain(subject) if subject.kind == "qkv" else subject
    for dtype in subject.engine.precisions:
        if dtype == subject.dtype and subject.kind != "qkv":
            continue  # nothing more exact to compare with
        try:
            shares = _errors(subject, mechanism, inputs, dtype)
        except Refused as error:
            refused.append(f"{dtype}: {error}")
            continue
        for i, share in enumerate(shares):
            name = f"gradient {i}" if i else "output"
            worst, at = max((worst, at), (share, f"{dtype}, {name}"))
    if not at:
        return unsupported("; ".join(refused))
    rule = "twice the plain mechanism's error + 4 eps" if subject.kind == "qkv" else "32 eps"
    return verdict(
        worst <= 1,
        f"the largest error is {shown(worst)} of the bound ({at})"
        + "".join(f"; not run in {said}" for said in refused),
        f"at most 1: {rule} of the largest number",
        "numbers are rounded on the way: a softmax or a sum in lower precision than the inputs",
        "softmax and sums in float32 (or the inputs' precision, if that is higher)",
    )


def _errors(
    subject: Subject, mechanism: Subject, inputs: list[np.ndarray], dtype: str
) -> list[float]:
    """The largest error of output and gradients in a low precision, in parts of the bound."""
    engine, eps = subject.engine, {"float32": 2.0**-23, "bfloat16": 2.0**-7}[dtype]
    if subject.kind != "model":
        inputs = [engine.numpy(engine.array(each, dtype)) for each in inputs]
    exactly = subject.rounded(dtype) if subject.dtype == "float64" else mechanism
    exact = _results(exactly, inputs, exactly.dtype)
    found = _results(subject, inputs, dtype)
    usual = _results(mechanism, inputs, dtype) if subject.kind == "qkv" else exact
    slack = 4 if subject.kind == "qkv" else 32
    shares = []
    for low, plainly, right in zip(found, usual, exact, strict=False):
        bound = 2 * np.abs(plainly - right).max() + slack * eps * np.abs(right).max()
        error = np.abs(low - right).max()
        shares.append(float(error / bound) if np.isfinite(error) else float("inf"))
    return shares


def _results(subject: Subject, inputs: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    """The output and, where the engine has them, the gradients of a weighted sum of it."""
    out = subject.run(inputs, dtype=dtype, **subject.causal)
    # Eighths, so that no precision rounds them.
    weight = np.round(8 * np.cos(np.arange(out.size) + 1.0)).reshape(out.shape) / 8
    try:
        return [out, *subject.gradients(inputs, weight, dtype=dtype, **subject.causal)]
    except Refused:
        return [out]


def _plain(subject: Subject) -> Subject:
    """The formula, in the same library and sizes."""
    mask = causal if subject.always_causal or subject.causal else None
    sizes = ("heads", "kv_heads", "head_dim", "device")
    declared = {name: getattr(subject.declared, name) for name in sizes}
    declared |= {"kind": "qkv", "engine": subject.engine.name}
    return Subject(partial(plain, spec=Spec(mask=mask)), Declaration.of(**declared))


def derivative(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    smooth = subject.smooth(inputs)
    random = np.random.default_rng(5)
    weight = random.normal(size=subject.at(inputs, smooth, **subject.causal).shape)
    gradients = subject.gradients(inputs, weight, **subject.causal)

    def at(i: int, shift: np.ndarray) -> np.ndarray:
        """The outputs with one input shifted."""
        there = [*smooth]
        there[i] = smooth[i] + shift
        return subject.at(inputs, there, **subject.causal)

    unit, coarse = subject.unit, subject.dtype == "float32"  # where a small step is all rounding
    step, limit = (3e-3, 3e-3) if coarse else (1e-6, 1e-5)

    def off(i: int, towards: np.ndarray) -> float:
        """How far gradient and difference quotient lie apart in one direction."""
        ends = at(i, step * towards) - at(i, -step * towards)
        numeric = float((ends * weight).sum()) / (2 * step)
        claimed, size = float((gradients[i] * towards).sum()), np.linalg.norm(unit * gradients[i])
        return abs(numeric - claimed) / max(abs(numeric), float(size), 1e-12)

    # One input at a time, so that a wrong gradient is not hidden by others; the best of three
    # directions, since in one of them a ReLU may have its kink.
    worst = max(
        min(off(i, unit * random.normal(size=each.shape)) for _ in range(3))
        for i, each in enumerate(smooth)
    )
    if not all(np.isfinite(each).all() for each in gradients):
        worst = float("inf")
    return verdict(
        worst <= limit,
        f"the gradient and a difference quotient differ by {shown(worst)}",
        f"at most {limit:g}: the gradient is the output's derivative",
        "the backward pass is not that of the forward pass: a custom backward with an error, or "
        "something detached",
        "compare with torch.autograd.gradcheck; d softmax = w * (g - sum(w * g))",
    )


def dropout(subject: Subject) -> Outcome:
    return _shares(subject) if subject.kind == "qkv" else _training(subject)


def _shares(subject: Subject) -> Outcome:
    rate, draws = 0.25, 60
    tokens = few(subject, subject.declared.head_dim)
    inputs = subject.inputs(tokens)
    whole = subject.weights(inputs)
    seen = np.array([subject.weights(inputs, dropout=rate, compiled=False) for _ in range(draws)])
    cells = whole > 1e-6
    dropped = (np.abs(seen) < 1e-12)[:, cells]
    share, deviation = float(dropped.mean()), (rate * (1 - rate) / dropped.size) ** 0.5
    kept = (seen / np.where(cells, whole, 1))[:, cells][~dropped]
    factor = float(np.median(kept)) if kept.size else float("nan")
    even = kept.size > 0 and gap(kept, np.full_like(kept, factor)) < 1e-6
    # One draw for many cells (rows, heads, calls) makes the share swing more than cells do.
    pattern = dropped.astype(float)
    swing = pattern.mean(axis=1).std() / (rate * (1 - rate) / pattern.shape[1]) ** 0.5
    spread = pattern.mean(axis=0).std() / (rate * (1 - rate) / draws) ** 0.5
    rate_right = abs(share - rate) < 6 * deviation
    rescaled = even and abs(factor * (1 - rate) - 1) < 1e-6
    drawn = swing < 1.5 and spread < 1.5
    if not rate_right:
        diagnosis = f"the share dropped is {share:.3f}: the rate is taken for the share kept, or "
        diagnosis += "dropout does nothing"
    elif not drawn:
        diagnosis = "cells do not fall one by one: one draw serves several rows, heads or calls"
    elif not even:
        diagnosis = "what remains is not a multiple of the weights: dropped before the softmax?"
    else:
        diagnosis = f"survivors are multiplied by {factor:.4g} instead of 1/(1-p)"
    return verdict(
        rate_right and rescaled and drawn,
        f"at p={rate}, {share:.3f} of the weights are 0 and the rest are multiplied by "
        f"{factor:.4g}",
        f"{rate}, and 1/(1-p) = {1 / (1 - rate):.4g}, each cell by itself",
        diagnosis,
        "F.dropout(weights, p, training=self.training) after the softmax",
    )


def _training(subject: Subject) -> Outcome:
    draws = 120
    inputs = subject.inputs(few(subject))
    whole = subject.run(inputs)
    seen = np.array([subject.run(inputs, train=True) for _ in range(draws)])
    live = bool(np.ptp(seen, axis=0).any())
    # The mean over draws of something linear is what evaluation gives.
    error = seen.std(axis=0) / (draws - 1) ** 0.5
    away = float((np.abs(seen.mean(axis=0) - whole) / np.maximum(error, 1e-12)).max())
    # Where most draws drop nothing, too few of them tell the mean.
    often = float((np.abs(seen - whole) > floor(subject)).mean()) > 0.6
    linear = subject.kind == "self" and not subject.declared.block and often
    return verdict(
        live and (not linear or away < 7),
        f"while training outputs {'differ' if live else 'do not differ'} from call to call"
        + (f"; their mean is {away:.1f} standard errors from evaluation" if linear else ""),
        "outputs differ" + (", their mean is within 7" if linear else ""),
        "survivors are not rescaled by 1/(1-p), or weights are dropped before the softmax"
        if live
        else "dropout was declared, and does nothing",
        "F.dropout(weights, p, training=self.training) after the softmax",
    )


def labels(subject: Subject) -> Outcome:
    inputs = subject.inputs(few(subject))
    logits, (tokens,) = subject.run(inputs), inputs
    claimed = subject.loss(inputs)
    logs = logits - logits.max(axis=-1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))
    count = tokens.shape[-1]
    by_shift = {}
    for shift in (-1, 0, 1, 2):
        at = np.arange(max(0, -shift), min(count, count - shift))
        by_shift[shift] = -float(
            np.take_along_axis(logs[:, at], tokens[:, at + shift, None], axis=-1).mean()
        )
    nearest = min(by_shift, key=lambda shift: abs(by_shift[shift] - claimed))
    off = abs(by_shift[1] - claimed) / by_shift[1]
    known = {
        0: "logits[t] are held to token t: the labels are not shifted, so the model learns to copy",
        2: "logits[t] are held to token t + 2: the labels are shifted twice",
        -1: "logits[t] are held to token t - 1: shifted the wrong way",
    }
    found = abs(by_shift[nearest] - claimed) / by_shift[nearest] <= 1e-3
    return verdict(
        off <= 1e-5,
        f"its loss is {claimed:.5g}; of the next token it would be {by_shift[1]:.5g}",
        "the mean of -log p(token t + 1) by logits[t]",
        known.get(nearest, "")
        if found and nearest != 1
        else "the loss is no mean over next tokens",
        "cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())",
    )


def tied(subject: Subject) -> Outcome:
    if subject.module is None:
        return unsupported("only modules of PyTorch hold parameters that can be seen")

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
    again.load_state_dict(state)  # as a file gives it: no two tensors share memory
    after = shared(again)
    inputs = subject.inputs(few(subject))
    other = Subject(again, subject.declared, subject.call)
    worst = gap(other.run(inputs), subject.run(inputs))
    good = bool(before) and after == before and worst <= subject.tolerance
    return verdict(
        good,
        f"one weight: {'; '.join(before) or 'none'}; after loading: {'; '.join(after) or 'none'}; "
        f"outputs differ by {shown(worst)}",
        "the embedding and the output are one weight, before and after",
        "nothing is tied: the output has a weight of its own (a copy ends with the first step)"
        if not before
        else "loading unties them: a parameter is assigned instead of filled"
        if after != before
        else "what is saved does not give the model back",
        "self.head.weight = self.embedding.weight, and again after loading with assign=True",
    )


CHECKS = {
    "runs": Check("it runs as declared", runs, ALL),
    "repeatable": Check(
        "evaluation gives the same bits again",
        repeatable,
        ALL,
        look=r"[dD]ropout|bernoulli|rand\w*\(|kept|cache",
    ),
    "used": Check(
        "every parameter takes part",
        used,
        ("self", "model"),
        look=r"self\.\w+\(|detach|no_grad",
    ),
    "untouched": Check("the inputs are left alone", untouched, ALL, look=r"[-+*/]=|_\(|\[.*\] ="),
    "strided": Check(
        "it reads values, not memory",
        strided,
        ("qkv", "self"),
        look=r"view|strided|contiguous|ravel",
    ),
    "precise": Check(
        "low precision is as good as it can be",
        precise,
        ALL,
        look=r"dtype|float|half|bfloat16|\.to\(|astype",
    ),
    "derivative": Check(
        "gradients are those of the output", derivative, ALL, look=r"backward|detach|grad"
    ),
    "dropout": Check(
        "dropout drops the share asked for, and rescales the rest",
        dropout,
        ALL,
        ("dropout",),
        look="dropout|bernoulli|rand",
    ),
    "labels": Check(
        "the loss is of the next token",
        labels,
        ("model",),
        ("labels",),
        look=r"cross_entropy|labels|targets|nll",
    ),
    "tied": Check(
        "tied weights stay tied", tied, ("model",), ("tied",), look=r"\.weight|load_state|tie"
    ),
}
