"""Training steps in PyTorch, each a function of (seed, step)."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from headway.attention.kernels import tuning
from headway.torch import weights
from headway.torch.optimizers import Optimizer
from headway.training.loop import NotFinite, Step, differences
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
    into micro-batches; it is clipped to the norm `config.clip`. The validation loss is computed
    every `evaluate_every` steps and after the last step. step: the number of completed steps.
    """

    def __init__(self, model: Any, task: Task, config: TrainingConfig) -> None:
        self.model, self.task, self.config, self.step = model, task, config, 0
        self._device = next(model.parameters()).device
        self._parameters = list(model.parameters())
        self._optimizer = Optimizer(model, config)
        self._loss = torch.compile(task.loss) if config.compile else task.loss

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(p.numel() for p in self._parameters)

    @property
    def device(self) -> str:
        """The kind of device that the model is on."""
        return self._device.type

    def advance(self) -> Step:
        """Take one step, as described in `training.loop.Trainer`."""
        rate = learning_rate(self.step, self.config)
        if not self.model.training:  # `train` visits all modules
            self.model.train()
        for parameter in self._parameters:
            parameter.grad = None
        loss = torch.zeros((), device=self._device)
        for batch, share in self.task.batches(self.step):
            with self._autocast():
                part = self._loss(self.model, *batch) * share
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        if not torch.isfinite(loss + norm):
            raise NotFinite.at(self.step + 1, loss.item(), self._diagnosis())
        self._optimizer.step(rate)
        self.step += 1
        return Step(
            step=self.step,
            tokens=self.task.tokens(self.step),
            loss=loss.item(),
            learning_rate=rate,
            gradient_norm=norm.item(),
            validation=self.evaluate() if self.config.is_evaluated(self.step) else None,
        )

    def evaluate(self) -> float:
        """The mean loss over the held-out data, in nats per token."""
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return self.task.evaluate(self.model)

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
            torch.set_num_threads(machine["threads"])
        weights.fill(self.model, state["model"])
        tensors = {name: torch.from_numpy(array) for name, array in state["optimizer"].items()}
        self._optimizer.restore(step, tensors)
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

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device, torch.bfloat16)
        return nullcontext()

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
        with torch.no_grad(), self._autocast():
            for batch, _ in self.task.batches(self.step):
                self.task.loss(self.model, *batch)
        for hook in hooks:
            hook.remove()
        if modules:
            return f"the first output that is not finite is that of {modules[0]}"
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"every output is finite, but the gradient of {name} is not"
        return "every output and every gradient is finite, but not their norm"
