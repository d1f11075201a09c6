"""Training with parameters, gradients and optimizer state that are split over processes.

PyTorch's FSDP2 (`fully_shard`) gathers the parameters of a block before the block needs them, and
sums and splits its gradients afterwards (Rajbhandari et al. 2020, ZeRO stage 3; Zhao et al. 2023,
"PyTorch FSDP"). Every parameter is split along its first axis. The model does not know of it.
"""

from collections.abc import Callable, Iterable, Mapping
from math import ceil, prod
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from headway.models.gpt import initial
from headway.torch.gpt import GPT
from headway.torch.optimizers import local
from headway.torch.train import Batches
from headway.training.checkpoints import Rows
from headway.training.processes import Processes
from headway.training.settings import TrainingConfig


@final
class Sharded:
    """A GPT that several processes train together; implements `torch.train.Computation`.

    The parameters of the model may be on the device `meta`: they get their initial values here,
    block by block, so that no process ever holds all of them.
    """

    def __init__(
        self, model: GPT, config: TrainingConfig, processes: Processes, device: torch.device
    ) -> None:
        self.model, self._processes, self._device = model, processes, device
        mesh = init_device_mesh(device.type, (processes.count,))
        is_bfloat16 = config.precision == "bfloat16"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_bfloat16 else None,
            reduce_dtype=torch.float32 if is_bfloat16 else None,
        )
        for number, block in enumerate(model.blocks):
            self._fill(block, f"blocks.{number}.", config.seed)
            if config.compile:
                block.compile()  # every block for itself, so that FSDP can work between them
            fully_shard(block, mesh=mesh, mp_policy=policy)
        self._fill(model, "", config.seed)
        if model.config.tied:
            model.head.weight = model.embedding.weight
        self._root: Any = fully_shard(_Root(model), mesh=mesh, mp_policy=policy)

    def backward(self, function: Callable[..., Tensor], batches: Batches) -> Tensor:
        """Set the gradients of the loss, and return the loss, both of all processes.

        The gradients are exchanged after the last micro-batch only.
        """
        for parameter in self.model.parameters():
            parameter.grad = None
        parts = [*batches]
        loss = torch.zeros((), device=self._device)
        for number, (batch, share) in enumerate(parts, start=1):
            self._root.set_requires_gradient_sync(number == len(parts))
            part = self._root(function, *batch) * share
            (part * self._processes.count).backward()  # FSDP takes the mean over the processes
            loss += part.detach()
        return self._total(loss)

    def norm(self) -> Tensor:
        """The norm of all gradients."""
        gradients = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
        squares = torch.stack([*torch._foreach_norm(gradients)]).square().sum()
        return self._total(squares).sqrt()

    def evaluate(self, function: Callable[..., Tensor]) -> Tensor:
        """Return the sum of the function's values in all processes, without gradients."""
        value = self._root(function)
        self._root.reshard()  # without a backward pass FSDP would keep what it has gathered
        return self._total(value)

    def updates(self, momenta: Mapping[str, Tensor], compute: Callable[..., Any]) -> Any:
        """Return this process's rows of `muon.updates`.

        Each matrix is sent to the process that orthogonalizes it, which sends the rows of the
        update back; so the work is divided.
        """
        return _exchanged(momenta, self._shapes(momenta), self._processes, compute)

    def rows(self, name: str, tensor: Tensor) -> Rows:
        """The rows of a parameter, or of its optimizer state, that this process has."""
        rows = self.model.get_parameter(name).shape[0]
        first = _first(rows, self._processes, self._processes.rank)
        return Rows(first, local(tensor).numpy(force=True))

    def fill(self, name: str, tensor: Tensor, values: Any) -> None:
        """Copy this process's rows of an array to a parameter, or to its optimizer state."""
        mine, rows = local(tensor), self.model.get_parameter(name).shape[0]
        first = _first(rows, self._processes, self._processes.rank)
        mine.copy_(torch.from_numpy(np.asarray(values[first : first + len(mine)])))

    def _shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.model.get_parameter(name).shape) for name in names}

    def _total(self, number: Tensor) -> Tensor:
        distributed.all_reduce(number)
        return number

    def _fill(self, module: nn.Module, prefix: str, seed: int) -> None:
        """Give initial values to the parameters that have no memory yet."""
        for name, parameter in [*module.named_parameters()]:
            if parameter.is_meta:
                layers = self.model.config.layers
                value = initial(prefix + name, tuple(parameter.shape), layers, seed)
                owner, _, leaf = name.rpartition(".")
                real = nn.Parameter(torch.from_numpy(value).to(self._device))
                setattr(module.get_submodule(owner), leaf, real)


@final
class _Root(nn.Module):
    """Calls functions of the model; FSDP gathers what lies outside the blocks for each call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def _first(rows: int, processes: Processes, rank: int) -> int:
    """The first row of a process; FSDP gives each ceil(rows / count) rows while there are any."""
    return min(rows, rank * ceil(rows / processes.count))


def _rows(rows: int, processes: Processes, rank: int) -> int:
    """The number of rows that a process has."""
    return _first(rows, processes, rank + 1) - _first(rows, processes, rank)


def _exchanged(
    momenta: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    processes: Processes,
    compute: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    ranks, me = range(processes.count), processes.rank
    owned = _owners(shapes, processes.count)
    like = next(iter(momenta.values()))

    def sizes(owner: int, rank: int) -> list[int]:
        """The numbers of elements that a process has of the matrices of their owner."""
        return [_rows(shapes[n][0], processes, rank) * prod(shapes[n][1:]) for n in owned[owner]]

    to_owners = [sum(sizes(owner, me)) for owner in ranks]
    to_me = [sum(sizes(me, rank)) for rank in ranks]

    received = like.new_empty(sum(to_me))
    sent = torch.cat([momenta[name].flatten() for names in owned for name in names])
    distributed.all_to_all_single(received, sent, to_me, to_owners)
    of_ranks = [
        torch.split(part, sizes(me, rank)) for rank, part in enumerate(torch.split(received, to_me))
    ]
    matrices = {
        name: torch.cat([parts[number] for parts in of_ranks]).reshape(shapes[name])
        for number, name in enumerate(owned[me])
    }

    updates = compute(matrices) if matrices else {}
    for_ranks = [
        torch.split(updates[name].flatten(), [sizes(me, rank)[number] for rank in ranks])
        for number, name in enumerate(owned[me])
    ]
    answered = torch.cat([like.new_empty(0), *(parts[r] for r in ranks for parts in for_ranks)])
    mine = like.new_empty(sum(to_owners))
    distributed.all_to_all_single(mine, answered, to_owners, to_me)
    result: dict[str, Tensor] = {}
    for owner, part in enumerate(torch.split(mine, to_owners)):
        result |= dict(zip(owned[owner], torch.split(part, sizes(owner, me)), strict=True))
    return {name: result[name].reshape(momentum.shape) for name, momentum in momenta.items()}


def _owners(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[list[str]]:
    """The names of the matrices that each process orthogonalizes; the work is about equal."""
    owned: list[list[str]] = [[] for _ in range(count)]
    work = [0] * count
    for name in sorted(shapes, key=lambda name: (-prod(shapes[name]), name)):
        least = work.index(min(work))
        owned[least].append(name)
        work[least] += prod(shapes[name]) * min(shapes[name][-2:])
    return owned
