"""Several devices: the batch cut among them, and the parameters copied or cut as well.

One named mesh and a `NamedSharding` an array; XLA puts the sums between the devices in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headway.attention.arrays import Array

AXIS = "data"


class Layout(NamedTuple):
    """Where arrays lie.

    full: parameters and the optimiser's state are cut among the devices too, each along its
    largest axis that divides (Rajbhandari et al. 2020, ZeRO stage 3); else every device has all.
    """

    mesh: Mesh
    full: bool = False

    def state(self, tree: Any) -> Any:
        """Parameters, or an optimiser's state, where they belong."""
        return jax.tree.map(lambda x: jax.device_put(x, self._sharding(x.shape)), tree)

    def batch(self, array: Any) -> Array:
        """Rows, shared out; all of them to every device where they do not divide."""
        divides = len(array) % self.mesh.size == 0
        return jax.device_put(
            array, NamedSharding(self.mesh, PartitionSpec(AXIS if divides else None))
        )

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        cut = [size for size in shape if size % self.mesh.size == 0] if self.full else []
        axis = shape.index(max(cut)) if cut else None
        return NamedSharding(
            self.mesh, PartitionSpec(*(AXIS if n == axis else None for n in range(len(shape))))
        )


def over(devices: Sequence[jax.Device], *, full: bool = False) -> Layout:
    """A layout over these devices, such as `jax.devices()`."""
    return Layout(Mesh(np.array(devices), (AXIS,)), full)
