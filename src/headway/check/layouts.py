"""Convert arrays and masks between the layout of the checks and the declared one.

The checks use (batch, heads, tokens, head_dim) for kind "qkv", and masks in which True means
"attend".
"""

from collections.abc import Sequence

import numpy as np

from headway.check.declaration import Declaration


def to_layout(declared: Declaration, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Convert arrays to the declared layout."""
    if declared.kind != "qkv" or declared.layout == "bhtd":
        return [np.ascontiguousarray(array) for array in inputs]
    moved = [np.ascontiguousarray(np.swapaxes(array, 1, 2)) for array in inputs]
    if declared.layout == "bthd":
        return moved
    return [array.reshape((*array.shape[:2], -1)) for array in moved]


def from_layout(declared: Declaration, array: np.ndarray, heads: int) -> np.ndarray:
    """Convert an array with this number of heads from the declared layout.

    Raises ValueError if the array does not have this layout.
    """
    if declared.kind != "qkv" or declared.layout == "bhtd":
        return array
    if declared.layout == "packed":
        batch, tokens, _ = array.shape
        array = array.reshape((batch, tokens, heads, -1))
    return np.swapaxes(array, 1, 2)


def to_mask(declared: Declaration, mask: np.ndarray) -> np.ndarray:
    """Convert a mask (batch, keys) or (batch, queries, keys) to the declared shape and meaning."""
    if declared.mask_shape == "full":
        tokens = mask.shape[-1]
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        mask = np.broadcast_to(mask, (len(mask), 1, tokens, tokens))
    return mask if declared.mask_true == "attend" else ~mask
