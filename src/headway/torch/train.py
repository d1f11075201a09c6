"""Training steps in PyTorch, each a function of (seed, step)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from headway.attention.kernels import tuning
from headway.torch import devices
from headway.torch.optimizers import KINDS, Optimizer, local
from headway.training.checkpoints import Rows, Tensors
from headway.training.loop import NotFinite, Pending, Step, differences, require_same_shapes
from headway.training.processes import ALONE, Processes, first_text
from headway.training.settings import TrainingConfig, learning_rate

# The arguments of the loss for each micro-batch, and the weight of its loss.
Batches = Iterable[tuple[tuple[Any, ...], float]]


@runtime_checkable
class Task(Protocol):
    """The batches of a task, and their loss: see `torch/tasks.py`."""

    def batches(self, step: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        """Yield the micro-batches of a step: the arguments of `loss`, and the weight of its loss.

        The loss of the step is the weighted sum.
        """

    def loss(self, model: Any, /, *batch: Any) -> Tensor:
        """The mean loss of a batch, in nats per token."""

    def tokens(self, step: int) -> int:
        """Return the number of tokens in the first `step` steps."""

    def evaluate(self, model: Any) -> Tensor:
        """The mean loss over the held-out data, in nats per token.

        Of several processes, each returns its part of it.
        """


@runtime_checkable
class Computation(Protocol):
    """A model whose loss, gradients and state are computed in this process, or in several."""

    def backward(self, function: Callable[..., Tensor], batches: Batches) -> Tensor:
        """Set the gradient of every parameter, and return the loss; both are weighted sums.

        function: the loss of the model and a batch.
        """

    def norm(self) -> Tensor:
        """The norm of all gradients."""

    def evaluate(self, function: Callable[..., Tensor]) -> Tensor:
        """Return the value of a function of the model, without gradients."""

    def updates(self, momenta: Mapping[str, Tensor], compute: Callable[..., Any]) -> Any:
        """Return the updates of Muon; compute: `muon.updates`."""

    def rows(self, name: str, tensor: Tensor) -> np.ndarray | Rows:
        """The values of a parameter, or of its optimizer state, that this process writes."""

    def fill(self, name: str, tensor: Tensor, values: np.ndarray) -> None:
        """Copy values to a parameter, or to its optimizer state."""


@final
class Trainer:
    """A trainer that updates a model in place, on the model's device, one step at a time.

    The gradient is that of the mean loss over all tokens of a batch, even if the batch is split
    into micro-batches; it is clipped to the norm `config.clip`. In bfloat16 each step computes with
    rounded copies of the parameters, which keep their dtype and so do their gradients (Micikevicius
    et al. 2018). The validation loss is computed every `evaluate_every` steps and after the last
    step. step: the number of started steps.

    processes, computation: those of a model that several processes train together.
    """

    def __init__(
        self,
        model: Any,
        task: Task,
        config: TrainingConfig,
        processes: Processes = ALONE,
        computation: Computation | None = None,
    ) -> None:
        self.model, self.task, self.config, self.step = model, task, config, 0
        self.processes = processes
        self._computation = Whole(model, config) if computation is None else computation
        self._parameters = list(model.parameters())
        self._device = self._parameters[0].device
        self._optimizer = Optimizer(model, config, self._computation.updates)
        # Of a model in several processes, the blocks are compiled.
        is_compiled = config.compile and computation is None
        self._loss = devices.compiled(task.loss) if is_compiled else task.loss
        # Whether the results of all steps so far are finite, on the device.
        self._is_finite = torch.ones((), dtype=torch.bool, device=self._device)

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(p.numel() for p in self._parameters)

    @property
    def device(self) -> str:
        """The kind of device that the model is on."""
        return self._device.type

    @property
    def device_name(self) -> str:
        """The device with the name of its model, for messages."""
        return devices.name(self._device)

    def product(self, size: int) -> Callable[[], object]:
        """Return a function that multiplies matrices; see `training.loop.Trainer`."""
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        one, other = torch.randn(2, size, size, device=self._device).to(dtype).unbind()
        return lambda: (one @ other)[0, 0].item()

    def start(self) -> Pending:
        """Start the next step, as described in `training.loop.Trainer`."""
        rate = learning_rate(self.step, self.config)
        if not self.model.training:  # `train` visits all modules
            self.model.train()
        loss = self._computation.backward(self._loss, self.task.batches(self.step))
        norm = self._computation.norm()
        scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(p.grad) for p in self._parameters if p.grad is not None], scale)
        self._is_finite &= torch.isfinite(loss + norm)
        self._optimizer.step(rate, self._is_finite)
        self.step += 1
        is_cuda = self._device.type == "cuda"
        numbers = torch.stack([loss, norm]).to("cpu", non_blocking=is_cuda)
        done = torch.cuda.current_stream(self._device).record_event() if is_cuda else None
        validation = self.evaluate() if self.config.is_evaluated(self.step) else None
        return _Pending(self, self.step, rate, validation, numbers, done)

    def advance(self) -> Step:
        """Take one step and wait for it; see `training.loop.Trainer`."""
        return self.start().result()

    def evaluate(self) -> float:
        """The mean loss over the held-out data, in nats per token."""
        self.model.eval()
        with torch.no_grad():
            return float(self._computation.evaluate(self.task.evaluate))

    def state(self) -> Mapping[str, Tensors]:
        """The weights and the state of the optimizer, by name."""
        rows, state = self._computation.rows, self._optimizer.state()
        return {
            "model": {name: rows(name, p) for name, p in self.model.named_parameters()},
            "optimizer": {name: rows(_owner(name), tensor) for name, tensor in state.items()},
        }

    def restore(
        self, step: int, state: Mapping[str, Mapping[str, np.ndarray]], machine: Mapping[str, Any]
    ) -> list[str]:
        """Restore a state and the number of threads; see `training.loop.Trainer`."""
        is_same = machine.get("processes", 1) == self.processes.count
        if is_same and machine["device"] == self.device:  # JAX may have used another device
            devices.use_threads(machine["threads"])
        parameters = dict(self.model.named_parameters())
        require_same_shapes(state["model"], parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                self._computation.fill(name, parameter, state["model"][name])
            for name, tensor in self._optimizer.state().items():
                self._computation.fill(_owner(name), tensor, state["optimizer"][name])
        self._optimizer.count(step)
        self._is_finite.fill_(True)
        self.step = step
        return differences(machine, self.machine())

    def machine(self) -> dict[str, Any]:
        """Return what must be equal on two machines for a resumed run to be equal bit for bit."""
        return {
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
            "device": self.device,
            "engine": "torch",
            "version": torch.__version__,
            "processor": platform.machine(),
            "kernels": tuning.digest(),
        }

    def failed(self, step: int, loss: float) -> NotFinite:
        """Return the error of a step; the next one that is started has this number again."""
        self.step = step - 1
        self._is_finite.fill_(True)
        return NotFinite.at(step, loss, self._diagnosis())

    def _diagnosis(self) -> str:
        """Describe the first module whose output is not finite, or else the first such gradient."""
        modules: list[str] = []

        def look(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) else output
                if isinstance(first, Tensor) and not torch.isfinite(first).all():
                    modules.append(name)

            return hook

        hooks = [m.register_forward_hook(look(n)) for n, m in self.model.named_modules() if n]
        self.model.train()
        # Not compiled.
        self._computation.backward(self.task.loss, self.task.batches(self.step))
        for hook in hooks:
            hook.remove()
        if module := first_text(self.processes, "".join(modules[:1])):
            return f"the first output that is not finite is that of {module}"
        infinite = [
            name
            for name, p in self.model.named_parameters()
            if p.grad is not None and not torch.isfinite(local(p.grad)).all()
        ]
        if name := first_text(self.processes, "".join(infinite[:1])):
            return f"every output is finite, but the gradient of {name} is not"
        return "every output and every gradient is finite, but not their norm"


@final
@dataclass(frozen=True)
class _Pending:
    """A started step; see `training.loop.Pending`.

    numbers: the loss and the norm of the gradient, on the CPU. done: the event after which they
    have their values; None if they have them.
    """

    trainer: Trainer
    step: int
    learning_rate: float
    validation: float | None
    numbers: Float[Tensor, "2"]
    done: torch.cuda.Event | None

    def is_ready(self) -> bool:
        if self.done is None or self.trainer.processes.count > 1:
            return self.done is None  # all processes read a step at the same time
        return bool(self.done.query())  # type: ignore[no-untyped-call]

    def result(self) -> Step:
        if self.done is not None:
            self.done.synchronize()
        loss, norm = self.numbers.tolist()
        if not isfinite(loss + norm):
            raise self.trainer.failed(self.step, loss)
        tokens = self.trainer.task.tokens(self.step)
        return Step(self.step, tokens, loss, self.learning_rate, norm, self.validation)


@final
class Whole:
    """A model that is in this process as a whole; implements `Computation`."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self._model, self._is_bfloat16 = model, config.precision == "bfloat16"

    def backward(self, function: Callable[..., Tensor], batches: Batches) -> Tensor:
        """Set the gradients, and return the loss; see `Computation`."""
        weights, parameters = self._weights(), [*self._model.parameters()]
        trained = [
            (p, w) for p, w in zip(parameters, weights.values(), strict=True) if p.requires_grad
        ]
        for parameter in parameters:
            parameter.grad = None
        loss = torch.zeros((), device=parameters[0].device)

        def computed(model: nn.Module, share: float, *batch: Any) -> tuple[Tensor, Any]:
            """The loss and its gradients, both while the model has these weights."""
            part = function(model, *batch) * share
            return part, torch.autograd.grad(part, [w for _, w in trained], allow_unused=True)

        call = _Call(self._model, computed)
        for batch, share in batches:
            part, gradients = functional_call(call, weights, (share, *batch))
            for (parameter, _), gradient in zip(trained, gradients, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad += gradient
                elif gradient is not None:
                    parameter.grad = gradient.to(parameter.dtype)
            loss += part.detach()
        return loss

    def norm(self) -> Tensor:
        """The norm of all gradients."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def evaluate(self, function: Callable[..., Tensor]) -> Tensor:
        """Return the value of a function of the model, in the precision of the config."""
        value: Tensor = functional_call(_Call(self._model, function), self._weights())
        return value

    def updates(self, momenta: Mapping[str, Tensor], compute: Callable[..., Any]) -> Any:
        """Return the updates of Muon."""
        return compute(momenta)

    def rows(self, name: str, tensor: Tensor) -> np.ndarray:
        """All values, which share the memory of the tensor on a CPU."""
        array: np.ndarray = tensor.numpy(force=True)
        return array

    def fill(self, name: str, tensor: Tensor, values: np.ndarray) -> None:
        """Copy values to a tensor."""
        tensor.copy_(torch.from_numpy(values))

    def _weights(self) -> dict[str, Tensor]:
        """The parameters of a `_Call`, in the precision of the config."""
        named: dict[str, Tensor] = {
            f"model.{name}": p for name, p in self._model.named_parameters()
        }
        if not self._is_bfloat16:
            return named
        return {
            name: p.detach().bfloat16().requires_grad_(p.requires_grad) for name, p in named.items()
        }


def _owner(name: str) -> str:
    """The parameter that a tensor of the optimizer's state belongs to."""
    for kind in KINDS:
        name = name.removeprefix(f"{kind}.")
    return name


@final
class _Call(nn.Module):
    """A function of a model as a module, whose parameters `functional_call` can replace."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self.model, *arguments)
