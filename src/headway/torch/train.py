"""Training steps in PyTorch, each a function of (seed, step)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from headway.attention.kernels import tuning
from headway.torch import devices, weights
from headway.torch.optimizers import Optimizer
from headway.training.loop import NotFinite, Pending, Step, differences
from headway.training.settings import TrainingConfig, learning_rate


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

    def evaluate(self, model: Any) -> float:
        """The mean loss over the held-out data, in nats per token."""


@final
class Trainer:
    """A trainer that updates a model in place, on the model's device, one step at a time.

    The gradient is that of the mean loss over all tokens of a batch, even if the batch is split
    into micro-batches; it is clipped to the norm `config.clip`. In bfloat16 each step computes with
    rounded copies of the parameters, which keep their dtype and so do their gradients (Micikevicius
    et al. 2018). The validation loss is computed every `evaluate_every` steps and after the last
    step. step: the number of started steps.
    """

    def __init__(self, model: Any, task: Task, config: TrainingConfig) -> None:
        self.model, self.task, self.config, self.step = model, task, config, 0
        self._device = next(model.parameters()).device
        self._parameters = list(model.parameters())
        self._optimizer = Optimizer(model, config)
        loss = devices.compiled(task.loss) if config.compile else task.loss
        self._loss, self._evaluate = _Call(model, loss), _Call(model, task.evaluate)
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
        loss = self._backward(self._loss)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
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
            return float(functional_call(self._evaluate, self._weights()))

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The weights and the state of the optimizer, by name."""
        optimizer = self._optimizer.state()
        return {
            "model": weights.to_arrays(self.model),
            "optimizer": {name: tensor.numpy(force=True) for name, tensor in optimizer.items()},
        }

    def restore(
        self, step: int, state: Mapping[str, Mapping[str, np.ndarray]], machine: Mapping[str, Any]
    ) -> list[str]:
        """Restore a state and the number of threads; see `training.loop.Trainer`."""
        if machine["device"] == self.device:  # JAX may have used another device
            devices.use_threads(machine["threads"])
        weights.fill(self.model, state["model"])
        tensors = {name: torch.from_numpy(array) for name, array in state["optimizer"].items()}
        self._optimizer.restore(step, tensors)
        self._is_finite.fill_(True)
        self.step = step
        return differences(machine, self.machine())

    def machine(self) -> dict[str, Any]:
        """Return what must be equal on two machines for a resumed run to be equal bit for bit."""
        return {
            "threads": torch.get_num_threads(),
            "device": self.device,
            "engine": "torch",
            "version": torch.__version__,
            "processor": platform.machine(),
            "kernels": tuning.digest(),
        }

    def _backward(self, loss_of: _Call) -> Tensor:
        """Set the gradient of every parameter, and return the loss of the step."""
        weights = self._weights()
        trained = [
            (p, w)
            for p, w in zip(self._parameters, weights.values(), strict=True)
            if p.requires_grad
        ]
        for parameter in self._parameters:
            parameter.grad = None
        loss = torch.zeros((), device=self._device)
        for batch, share in self.task.batches(self.step):
            part = functional_call(loss_of, weights, batch) * share
            parts = torch.autograd.grad(part, [w for _, w in trained], allow_unused=True)
            for (parameter, _), gradient in zip(trained, parts, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad += gradient
                elif gradient is not None:
                    parameter.grad = gradient.to(parameter.dtype)
            loss += part.detach()
        return loss

    def _weights(self) -> dict[str, Tensor]:
        """The parameters of a `_Call`, in the precision of the config."""
        named = {f"model.{name}": p for name, p in self.model.named_parameters()}
        if self.config.precision != "bfloat16":
            return named
        return {
            name: p.detach().bfloat16().requires_grad_(p.requires_grad) for name, p in named.items()
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
        self._backward(_Call(self.model, self.task.loss))  # not compiled
        for hook in hooks:
            hook.remove()
        if modules:
            return f"the first output that is not finite is that of {modules[0]}"
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
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
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]

    def result(self) -> Step:
        if self.done is not None:
            self.done.synchronize()
        loss, norm = self.numbers.tolist()
        if not isfinite(loss + norm):
            raise self.trainer.failed(self.step, loss)
        tokens = self.trainer.task.tokens(self.step)
        return Step(self.step, tokens, loss, self.learning_rate, norm, self.validation)


@final
class _Call(nn.Module):
    """A function of a model as a module, whose parameters `functional_call` can replace."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self.model, *arguments)
