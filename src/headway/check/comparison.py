"""Compare an attention with the formula and with all suspects, in several situations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from headway.check.core import Core, Scale, scale_of, weights_of
from headway.check.errors import Refused
from headway.check.subject import Subject
from headway.check.suspects import measured, suspects
from headway.check.suspects.steps import RIGHT, Call, Rotation, Suspect


@dataclass(frozen=True)
class Situation:
    """Inputs and options of one call, and the output of the core under test.

    bias: what the position of a key adds to the scores (features of the context, queries, keys), if
    positions are declared.
    """

    inputs: tuple[np.ndarray, np.ndarray, np.ndarray]
    options: dict[str, Any]
    output: np.ndarray
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Comparison:
    """The result of comparing an attention with the formula and with all suspects.

    heads: the number of heads if the formula gives the same outputs. suspect: the one that does
    instead, or None.
    """

    heads: int | None = None
    suspect: Suspect | None = None


def compare(subject: Subject, core: Core) -> Comparison:
    """Compare the core of an attention with the formula, then with all suspects."""
    if "comparison" not in subject.memory:
        subject.memory["comparison"] = _compared(subject, core)
    comparison: Comparison = subject.memory["comparison"]
    return comparison


def _compared(subject: Subject, core: Core) -> Comparison:
    comparison = _as_declared(subject, core)
    declared = subject.declared
    if comparison != Comparison() or declared.always_causal or subject.causal_options:
        return comparison
    # It may be causal and have a fault.
    causal = _as_declared(replace(subject, declared=replace(declared, causal=True)), core)
    if causal.suspect is None:
        return comparison
    note = "if it is meant to be causal (declare causal=True): "
    return Comparison(suspect=replace(causal.suspect, diagnosis=note + causal.suspect.diagnosis))


def _as_declared(subject: Subject, core: Core) -> Comparison:
    situations = [*_situations(subject, core)]
    settings = [*_settings(subject, core, situations)]
    right = Suspect("", "", RIGHT, "")
    for setting in settings:
        if _agrees(subject, right, setting, situations):
            return Comparison(setting.heads, _of_bias(situations) if setting.has_bias else None)
    for setting in _plausible(subject, core, settings):
        for suspect in (*suspects(), *_fitted(subject, core, setting, situations)):
            if _agrees(subject, suspect, setting, situations):
                return Comparison(suspect=_with_scale(suspect, core, subject.causal_options))
    return Comparison()


def _with_scale(suspect: Suspect, core: Core, options: dict[str, Any]) -> Suspect:
    """Add what to declare if a suspect with another scale is intended."""
    scale = scale_of(core, **options)
    is_other = suspect.steps.scale is not RIGHT.scale and suspect.steps.mix is RIGHT.mix
    if not is_other or not isinstance(scale, Scale) or scale.factor <= 0:
        return suspect
    number = f"{scale.factor:.6g}"
    return replace(suspect, declare=f"scale={number} (--scale {number})")


def _plausible(subject: Subject, core: Core, settings: list[Setting]) -> list[Setting]:
    """Return the settings whose rotation is that of the attention, or the first ones.

    The log-odds of two keys for the last query are compared, up to a factor: no mask and no
    normalization changes them.
    """
    rotated = [setting for setting in settings if setting.rotation is not None]
    if subject.kind == "qkv" or len(rotated) < 2:
        return settings
    random = np.random.default_rng(14)
    queries, keys, values = (random.normal(size=(3, 2, width)) for width in core.widths)
    keys[:, 1] = 0.0
    try:
        last = weights_of(core, queries, keys, **subject.causal_options)[:, :, 1]
    except Refused:
        return settings
    with np.errstate(all="ignore"):
        odds = np.log(last[..., 0] / last[..., 1])
    found = []
    for setting in settings:
        call = _call(subject, setting, Situation((queries, keys, values), {}, odds))
        scores = _scores(Situation((queries, keys, values), {}, odds), call)[:, :, 1, 0]
        ratios = odds / np.repeat(scores, odds.shape[1] // scores.shape[1], axis=1)
        if np.ptp(ratios) < 1e-4 * np.abs(ratios).max():
            found.append(setting)
    firsts = {setting.heads: setting for setting in reversed(rotated)}
    plain = [setting for setting in settings if setting.rotation is None]
    return found or [*plain, *firsts.values()]


def _situations(subject: Subject, core: Core) -> Iterator[Situation]:
    """Yield calls with and without each declared option; those that raise errors are left out."""
    features, tokens = subject.declared.features, subject.few_tokens
    random = np.random.default_rng(11)
    # A causal mask hides the last tokens from the others anyway, but not token 1.
    pad = np.arange(tokens) < np.array([[tokens], [tokens - 1]])
    pad[:, 1] = False
    full = np.tri(tokens, k=1, dtype=bool) & (np.arange(tokens) != 1)
    full = np.stack([full | np.eye(tokens, dtype=bool), np.ones((tokens, tokens), bool)])
    full[1, :3, 3:] = full[1, 3:, :3] = False
    masks = [pad, full] if subject.declared.mask_shape == "full" else [pad]
    calls: list[tuple[dict[str, Any], int]] = [({}, tokens)]
    causal = dict(subject.causal_options)
    if causal:
        calls.append((causal, tokens))
    if "mask" in features:
        calls += [({"mask": mask, **extra}, tokens) for mask in masks for extra in ({}, causal)]
    if "softcap" in features:
        calls += [({"softcap": 1.5}, tokens), ({"softcap": 1.5, **causal}, tokens)]
        if "mask" in features:
            calls.append(({"softcap": 1.5, "mask": pad}, tokens))
    if "window" in features:
        calls.append(({"window": 3, **causal}, tokens))
        if "mask" in features:
            calls.append(({"window": 3, "mask": pad, **causal}, tokens))
    if "positions" in features:
        calls += [({"positions": 2 * np.arange(tokens) + shift}, tokens) for shift in (0, 3)]
    is_stepwise = subject.kind == "qkv" and "cache" in features
    if is_stepwise:
        windows = [{}, {"window": 3}] if "window" in features else [{}]
        calls += [({**causal, **extra}, rows) for rows in (1, 3) for extra in windows]
    if subject.longest > tokens:
        calls.append((causal, subject.longest))
    for options, rows in calls:
        count = max(rows, tokens)
        queries, keys, values = (random.normal(size=(2, count, width)) for width in core.widths)
        inputs = queries[:, -rows:] if is_stepwise else queries, keys, values
        try:
            output = core.run(*inputs, **options)
            bias = _bias(core, *inputs[:2], options) if subject.declared.positions else None
        except Refused:
            continue
        yield Situation(inputs, options, output, bias)


def _bias(core: Core, queries: np.ndarray, keys: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Return what the position of a key adds to the scores: queries of 0 show it.

    It is relative to the key at the position of the query; 0 for keys that are hidden.
    """
    weights = weights_of(core, np.zeros_like(queries), np.zeros_like(keys), **options)[0]
    rows = np.arange(queries.shape[1])
    itself = weights[:, rows, rows + keys.shape[1] - queries.shape[1]]
    with np.errstate(all="ignore"):
        bias = np.log(weights) - np.log(itself)[..., None]
    return np.where(np.isfinite(bias), bias, 0.0)


@dataclass(frozen=True)
class Setting:
    """What differs between right attentions: heads, rotary positions, a bias by position, sinks."""

    heads: int
    kv_heads: int
    rotation: Rotation | None = None
    has_bias: bool = False
    sinks: np.ndarray | None = None
    scale: float | None = None


BASES = (10_000.0, 500_000.0, 1_000_000.0, 5_000_000.0, 10_000_000.0, 160_000.0)


def _settings(subject: Subject, core: Core, situations: list[Situation]) -> Iterator[Setting]:
    declared = subject.declared
    if subject.kind == "qkv":
        counts = [(declared.heads, subject.kv_heads)]
    else:
        times = core.widths[0] // core.widths[1]
        scale = scale_of(core)
        heads = core.widths[0] // scale.head_dim if isinstance(scale, Scale) else 0
        counts = [(n * times, n) for n in core.heads if heads in (0, n * times)]
    bases = BASES if declared.rotary_base is None else (declared.rotary_base,)
    share, nowhere = declared.rotary_share or 1.0, np.zeros(1)
    rotations: list[Rotation | None] = [None]
    if "positions" in declared.features:
        rotations = [Rotation(nowhere, declared.rotary, base, share) for base in bases]
    elif declared.positions:
        # Inside a module, the direction of the rotation does not matter.
        rotations += [
            Rotation(nowhere, pairs, base, share, factor=factor)
            for pairs, base, factor in product(("half", "interleaved"), bases, (1.0, -1.0))
        ]
    plain = next((s for s in situations if _is_square(s) and "mask" not in s.options), None)
    factor = _scale(subject, core)
    for heads, kv_heads in counts:
        settings = [Setting(heads, kv_heads, rotation) for rotation in rotations]
        if any(s.bias is not None and np.abs(s.bias).max() > 1e-6 for s in situations):
            settings.insert(0, Setting(heads, kv_heads, has_bias=True))
        for setting in settings:
            setting = replace(setting, scale=factor)
            if declared.sinks and plain is not None:
                sinks = _measured_sinks(subject, core, setting, plain)
                setting = replace(setting, sinks=sinks)
            yield setting


def _scale(subject: Subject, core: Core) -> float | None:
    """Return the declared scale; the measured one if it is the same up to a few digits."""
    declared, measured = subject.declared.scale, scale_of(core, **subject.causal_options)
    if declared is not None and isinstance(measured, Scale):
        return measured.factor if abs(measured.factor / declared - 1) < 1e-4 else declared
    return declared


def _measured_sinks(
    subject: Subject, core: Core, setting: Setting, plain: Situation
) -> np.ndarray | None:
    """Return the additional term of the denominator of each head, or None."""
    call = _call(subject, setting, plain)
    weights = _weights(core, setting.heads, plain)
    if weights is None:
        return None
    allowed = call.structure()
    total = np.exp(np.where(allowed, _scores(plain, call), -np.inf)).sum(axis=-1)
    terms = np.median(total / weights.sum(axis=-1) - total, axis=(0, 2))
    return np.asarray(terms) if (terms > 0).all() else None


def _weights(core: Core, heads: int, situation: Situation) -> np.ndarray | None:
    """Return the weights (batch, heads, queries, keys), or None if they are not found."""
    queries, keys, _ = situation.inputs
    try:
        weights = weights_of(core, queries, keys, **situation.options)
    except Refused:
        return None
    if weights.shape[1] % heads or not np.isfinite(weights).all():
        return None
    return weights[:, :: weights.shape[1] // heads]


def _call(subject: Subject, setting: Setting, situation: Situation) -> Call:
    declared, options = subject.declared, situation.options
    queries, keys = (array.shape[1] for array in situation.inputs[:2])
    mask, rotation = options.get("mask"), setting.rotation
    if "positions" in declared.features and "positions" not in options:
        rotation = None
    if rotation is not None:
        rotation = replace(rotation, positions=options.get("positions", np.arange(keys)))
    bias: Any = 0.0
    if setting.has_bias and situation.bias is not None:
        bias = situation.bias[:: len(situation.bias) // setting.heads]
    return Call(
        declared,
        (queries, keys),
        heads=setting.heads,
        kv_heads=setting.kv_heads,
        causal=declared.always_causal or bool(options.get("causal")),
        window=options.get("window"),
        given=None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask[:, None],
        softcap=options.get("softcap", declared.softcap),
        scale=setting.scale,
        rotation=rotation,
        bias=bias,
        sinks=setting.sinks,
    )


def _agrees(
    subject: Subject, suspect: Suspect, setting: Setting, situations: list[Situation]
) -> bool:
    """Whether a suspect gives the outputs of all situations.

    Where a suspect gives NaN, in rows with all keys hidden, any output agrees. Such a row may also
    be all there is in some situations, but not in all of them.
    """
    has_numbers = False
    for situation in situations:
        try:
            expected = suspect.steps(*situation.inputs, _call(subject, setting, situation))
        except (ValueError, IndexError):  # the shapes are impossible for this suspect
            return False
        if expected.shape != situation.output.shape:
            return False
        mask = situation.options.get("mask")
        if suspect.steps is RIGHT and subject.kind == "self" and mask is not None:
            expected = np.where(mask[..., None], expected, np.nan)  # not at padding itself
        finite = np.isfinite(expected)
        if finite.mean() < 0.5:
            if np.isfinite(situation.output).all():
                return False
            continue
        has_numbers = True
        output = situation.output[finite]
        largest = max(float(np.abs(expected[finite]).max()), 1e-30)
        if not float(np.abs(output - expected[finite]).max()) <= subject.tolerance * largest:
            return False
    return has_numbers


def _fitted(
    subject: Subject, core: Core, setting: Setting, situations: list[Situation]
) -> Iterator[Suspect]:
    """Yield suspects with parameters that are measured."""
    options = dict(subject.causal_options)
    scale = scale_of(core, **options)
    if isinstance(scale, Scale):
        yield from measured.of_scale(scale)
    plain = next((s for s in situations if s.options == options and _is_square(s)), None)
    if plain is None:
        return
    call = _call(subject, setting, plain)
    weights = _weights(core, setting.heads, plain)
    if weights is None:
        return
    yield from measured.of_structure(weights, call)
    scores = _scores(plain, call)
    yield from measured.of_sums(weights, scores, call)
    allowed = call.structure()
    for name, value in measured.of_hidden(weights, scores, allowed):
        yield Suspect(
            f"the causal mask {name}: the scores of later tokens are not low enough",
            "scores.masked_fill(later, -inf) before the softmax",
            replace(RIGHT, hide_structure=value),
            r"mask|tril|triu|causal|-inf",
        )
    for situation in situations:
        mask = _call(subject, setting, situation).given
        if mask is None or not _is_square(situation):
            continue
        weights = _weights(core, setting.heads, situation)
        if weights is None:
            continue
        hidden = allowed & ~mask
        scores = _scores(situation, call)
        for name, value in measured.of_hidden(weights, scores, ~hidden):
            yield Suspect(
                f"the mask {name}: the scores of masked keys are not low enough",
                "scores.masked_fill(~attend, -inf) before the softmax",
                replace(RIGHT, hide_given=value),
                r"mask|-inf",
            )
        break


def _of_bias(situations: list[Situation]) -> Suspect | None:
    """Return a fault of a bias by position, or None."""
    look, fix = r"bias|slope|alibi|distance|arange", "bias = -slope * abs(query - key)"
    full = next(s.bias for s in situations if s.bias is not None and _is_square(s))
    assert full is not None  # for the types
    distance = np.subtract.outer(*[np.arange(full.shape[-1])] * 2)
    seen = (full != 0).any(axis=0)
    earlier, later = (full[:, seen & (sign * distance > 0)] for sign in (1, -1))
    if earlier.size and (earlier > 0).all() and (not later.size or (later > 0).all()):
        return Suspect(
            "the bias by distance (ALiBi) has the wrong sign: distant keys get larger scores",
            fix, RIGHT, look,
        )  # fmt: skip
    if earlier.size and later.size and (np.sign(earlier) != np.sign(later)).all():
        return Suspect(
            "the bias by distance (ALiBi) has no absolute value: it favours keys on one side, "
            "later or earlier ones",
            fix, RIGHT, look,
        )  # fmt: skip
    for situation in situations:
        bias = situation.bias
        if bias is None or _is_square(situation) or bias.shape[-1] != full.shape[-1]:
            continue
        if not np.allclose(bias, full[:, -bias.shape[1] :], atol=1e-6):
            return Suspect(
                "the bias by distance (ALiBi) counts from the top left: with a cache the last "
                "query must have the position of the last key",
                "distance = keys - queries + row - key", RIGHT, look,
            )  # fmt: skip
    return None


def _is_square(situation: Situation) -> bool:
    return bool(situation.inputs[0].shape[1] == situation.inputs[1].shape[1])


def _scores(situation: Situation, call: Call) -> np.ndarray:
    """Return the scores of the formula before masks, (batch, heads, queries, keys)."""
    kept: list[np.ndarray] = []

    def keep(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        kept.append(scores)
        return scores

    replace(RIGHT, hide_structure=keep)(*situation.inputs, replace(call, given=None))
    return kept[0]
