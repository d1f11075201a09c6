"""The masks of transformers as masks of Headway, which keep their structure.

transformers describes a mask by a predicate on positions (`masking_utils.py`), a padding mask with
two dimensions and two offsets. `StructuredMask` carries this description through the code of a
model, which expects a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getclosurevars
from math import inf
from typing import Any, final

import torch
from torch import Tensor

from headway.attention.masks import Band, Mask, both, causal

Predicate = Callable[..., Any]


@final
class StructuredMask(Tensor):
    """A mask (batch, 1, Tq, Tk) that is made only if an operation needs its values.

    structure: the mask, None for every key. offset: the position of the first query, relative to
    the first key. cells: (batch, Tq, Tk). make: the function of transformers that makes it: boolean
    or numbers that are added to the scores. The tensor itself is one element with strides of 0.
    """

    structure: Mask | None
    offset: int
    cells: tuple[int, int, int]
    arguments: dict[str, Any]
    make: Callable[..., Tensor | None]

    @classmethod
    def of(cls, arguments: dict[str, Any], make: Callable[..., Tensor | None]) -> StructuredMask:
        """The mask for the arguments of a mask function of transformers."""
        from transformers import masking_utils

        cells = tuple(int(arguments[name]) for name in ("batch_size", "q_length", "kv_length"))
        batch, rows, columns = cells
        dtype = torch.bool if make is masking_utils.sdpa_mask else arguments["dtype"]
        one = torch.ones((), dtype=dtype, device=arguments.get("device", "cpu"))
        mask: StructuredMask = one.expand(batch, 1, rows, columns).as_subclass(cls)
        first_key = int(arguments.get("kv_offset", 0))
        mask.cells, mask.arguments, mask.make = (batch, rows, columns), arguments, make
        mask.offset = int(arguments.get("q_offset", 0)) - first_key
        mask.structure = structure_of(arguments["mask_function"], first_key)
        padding = arguments.get("attention_mask")
        if padding is not None:
            padding = padding[:, first_key : first_key + columns].bool()
            if padding.shape[-1] < columns:  # as in transformers: the rest is padding
                missing = columns - padding.shape[-1]
                padding = torch.nn.functional.pad(padding, (0, missing))
            if not padding.all():
                mask.structure = both(mask.structure, _padding(padding))
        return mask

    def matrix(self) -> Tensor:
        """The mask as a matrix, made by transformers."""
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        matrix = self.make(**{**self.arguments, **skips})
        assert matrix is not None  # without the skips there is always a matrix
        return matrix

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on the matrix, except those that only ask for the shape."""
        if function not in _ABOUT:
            args, kwargs = torch.utils._pytree.tree_map_only(
                StructuredMask, StructuredMask.matrix, (args, kwargs)
            )
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


# What a model may ask a mask without needing its values.
_ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")),
    *(getattr(Tensor, name).__get__ for name in ("is_cuda", "requires_grad")),
    *(Tensor.dim, Tensor.size, Tensor.is_floating_point),
}


def structure_of(predicate: Predicate, first_key: int = 0) -> Mask | None:
    """A predicate of transformers as a Mask; None if it allows everything.

    The bands and the intersections of transformers are recognized. Any other predicate is
    evaluated at positions. first_key: the position of the first key.
    """
    from transformers import masking_utils

    known: dict[Predicate, Mask | None] = {
        masking_utils.causal_mask_function: causal,
        masking_utils.bidirectional_mask_function: None,
    }
    if predicate in known:
        return known[predicate]
    maker = predicate.__qualname__.partition(".<locals>")[0]
    inside = getclosurevars(predicate).nonlocals
    if maker == "and_masks" and "mask_functions" in inside:
        mask: Mask | None = None
        for part in inside["mask_functions"]:
            structure = structure_of(part, first_key)
            mask = mask if structure is None else both(mask, structure)
        return mask
    band, width = None, inside.get("sliding_window")
    if maker == "sliding_window_overlay" and isinstance(width, int):
        band = Band(-inf, width - 1)
    if maker == "sliding_window_bidirectional_overlay" and isinstance(width, int):
        band = Band(-width, width)

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Any:
        # transformers evaluates every mask at head 0.
        return predicate(batch, head[:1] * 0, query + first_key, key + first_key)

    return Mask(allowed, maker, band=band)


def _padding(kept: Tensor) -> Mask:
    """The mask for a padding mask (batch, Tk) that is True at tokens."""
    return Mask(lambda batch, head, query, key: kept[batch, key], "padding")
