"""Training on several devices: the batch is split, the parameters are replicated or split.

One named mesh of all devices of all processes, and one `NamedSharding` per array. Every device
computes the loss and the gradients of its rows of a batch; they are summed over the devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from headway.attention.arrays import Array

AXIS = "data"
ABSENT = -1  # the target of a row that counts for nothing

# A function that returns these rows of a batch: inputs and targets.
Read = Callable[[slice], tuple[np.ndarray, np.ndarray]]


class Layout(NamedTuple):
    """How arrays are distributed over devices.

    full: split the parameters and the optimizer's state as well (Rajbhandari et al. 2020, ZeRO
    stage 3). Each array is split along the largest axis whose size is a multiple of the number of
    devices. Otherwise every device has a copy.
    """

    mesh: Mesh
    full: bool = False

    @property
    def devices(self) -> list[jax.Device]:
        """The devices of this process."""
        return [d for d in self.mesh.devices.flat if d.process_index == jax.process_index()]

    def state(self, tree: Any) -> Any:
        """Distribute parameters or an optimizer's state over the devices."""
        return jax.tree.map(self._placed, tree)

    def batch(self, rows: int, read: Read) -> tuple[Array, Array]:
        """Return the inputs and targets of a batch; each process reads the rows of its devices.

        Every device has the same number of rows, from row `first(rows, device)` of the batch. If
        the rows do not divide evenly, some have one row more than their share: its targets are
        ABSENT.
        """
        most, sharding = self.most(rows), NamedSharding(self.mesh, PartitionSpec(AXIS))
        parts = []
        for number, device in enumerate(self.mesh.devices.flat):
            if device.process_index == jax.process_index():
                first = self.first(rows, number)
                inputs, targets = read(slice(first, first + most))
                is_in_share = np.arange(most)[:, None] < self.first(rows, number + 1) - first
                parts.append((inputs, np.where(is_in_share, targets, ABSENT)))
        inputs, targets = (
            jax.make_array_from_process_local_data(
                sharding, np.concatenate(arrays, dtype=np.int32, casting="same_kind")
            )
            for arrays in zip(*parts, strict=True)
        )
        return inputs, targets

    def local(self, tree: Any) -> Any:
        """Return the arrays of a tree, as a whole, on a device of this process.

        All processes must call this at the same time.
        """
        if len(self.devices) == self.mesh.size:
            return tree
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        copies = jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)
        return jax.tree.map(lambda array: array.addressable_data(0), copies)

    def most(self, rows: int) -> int:
        """The number of rows of a batch that every device has."""
        return -(-rows // self.mesh.size)

    def first(self, rows: int, device: Any) -> Any:
        """The first row of a device, by its number; see `training.processes.share`."""
        return rows * device // self.mesh.size

    def summed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the sum of a function over the devices, as a function of a whole batch.

        function: of (params, inputs, targets, *others, device). It gets whole parameters, the rows
        of a device in a batch, and the number of the device.
        """
        if self.mesh.size == 1:
            return lambda *arguments: function(*arguments, 0)

        def of_device(*arguments: Any) -> Any:
            return jax.lax.psum(function(*arguments, jax.lax.axis_index(AXIS)), AXIS)

        whole, rows = PartitionSpec(), PartitionSpec(AXIS)
        return lambda params, inputs, targets, *others: jax.shard_map(
            of_device,
            mesh=self.mesh,
            in_specs=(whole, rows, rows, *[whole for _ in others]),
            out_specs=whole,
            check_vma=False,  # kernels do not say what varies
        )(params, inputs, targets, *others)

    def _placed(self, array: Any) -> Array:
        sharding = self._sharding(array.shape)
        if not sharding.is_fully_addressable:
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
        return jax.device_put(array, sharding)

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        divisible = [n for n in shape if n % self.mesh.size == 0] if self.full else []
        axis = shape.index(max(divisible)) if divisible else None
        axes = (AXIS if n == axis else None for n in range(len(shape)))
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def over(devices: Sequence[jax.Device], *, full: bool = False) -> Layout:
    """Return a layout over these devices, such as `jax.devices()`."""
    return Layout(Mesh(np.array(devices), (AXIS,)), full)
