"""Make a Spec from keyword arguments, and combine the Spec of a layer with that of a call."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from jaxtyping import Bool, Float, Int

from headway.attention import dropout, masks
from headway.attention.arrays import Array
from headway.attention.masks import Mask, as_mask, both
from headway.attention.normalizers import Normalizer
from headway.attention.scores import Score
from headway.attention.spec import DEFAULT, Offset, Seed, Spec
from headway.nearest import suggestion


class Options(TypedDict, total=False):
    """The types of the keyword arguments of `headway.attend`; its docstring explains them."""

    mask: Mask | Bool[Array, "..."] | None
    bias: Float[Array, "..."] | None
    causal: bool
    window: int | None
    scale: float | None
    softcap: float | None
    normalizer: Normalizer
    score: Score
    sink_logits: Float[Array, " heads"] | None
    dropout: float
    seed: Seed | None
    offset: Offset
    batch_offset: int | Int[Array, ""]


_FIELDS = frozenset(Spec._fields)


def spec_from(options: Mapping[str, object]) -> Spec:
    """Make a Spec from the options of `attend`.

    Raises TypeError for an unknown option, and ValueError for an invalid value.
    """
    if not options:
        return DEFAULT
    given: dict[str, Any] = dict(options)
    mask = given.pop("mask", None)
    mask = None if mask is None else as_mask(mask)
    if given.pop("causal", False):
        mask = both(mask, masks.causal)
    if (width := given.pop("window", None)) is not None:
        mask = both(mask, masks.window(width))
    if not given.keys() <= _FIELDS:
        (name, *_) = given.keys() - _FIELDS
        known = (*Spec._fields, "causal", "window", "kernel")
        raise TypeError(f"unknown option {name!r}; {suggestion(name, known)}")
    spec = Spec(mask, **given)
    if isinstance(spec.softcap, int | float) and not 0 < spec.softcap < math.inf:
        raise ValueError(
            f"softcap must be a finite number > 0 (got {spec.softcap}); use None for no softcap"
        )
    if isinstance(spec.scale, int | float) and not math.isfinite(spec.scale):
        raise ValueError(f"scale must be a finite number (got {spec.scale})")
    if spec.dropout:
        dropout.check(spec)
    return spec


def combine(layer: Spec, call: Spec, *, training: bool) -> Spec:
    """Combine the options of a layer with those of one call of the layer.

    A cell is allowed if both masks allow it. The layer's dropout applies only while training.
    seed, offset and batch_offset are those of the call.
    """
    return layer._replace(
        mask=layer.mask if call.mask is None else both(layer.mask, call.mask),
        dropout=layer.dropout if training else 0.0,
        seed=call.seed,
        offset=call.offset,
        batch_offset=call.batch_offset,
    )
