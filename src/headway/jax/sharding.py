"""Training on several devices: the batch is split, the parameters are replicated or split.

One named mesh, and one `NamedSharding` per array; XLA inserts the sums across devices.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headway.attention.arrays import Array

AXIS = "data"


class Layout(NamedTuple):
    """How arrays are distributed over devices.

    full: split the parameters and the optimizer's state as well (Rajbhandari et al. 2020, ZeRO
    stage 3). Each array is split along the largest axis whose size is a multiple of the number of
    devices. Otherwise every device has a copy.
    """

    mesh: Mesh
    full: bool = False

    def state(self, tree: Any) -> Any:
        """Distribute parameters or an optimizer's state over the devices."""
        return jax.tree.map(lambda x: jax.device_put(x, self._sharding(x.shape)), tree)

    def batch(self, array: Any) -> Array:
        """Split the rows over the devices, or copy them to each if they do not divide evenly."""
        rows = PartitionSpec(AXIS if len(array) % self.mesh.size == 0 else None)
        return jax.device_put(array, NamedSharding(self.mesh, rows))

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        divisible = [n for n in shape if n % self.mesh.size == 0] if self.full else []
        axis = shape.index(max(divisible)) if divisible else None
        axes = (AXIS if n == axis else None for n in range(len(shape)))
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def over(devices: Sequence[jax.Device], *, full: bool = False) -> Layout:
    """Return a layout over these devices, such as `jax.devices()`."""
    return Layout(Mesh(np.array(devices), (AXIS,)), full)
