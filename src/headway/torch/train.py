"""Training in PyTorch: one step after another, each a function of (seed, step)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from headway.attention.kernels import tuning
from headway.torch import weights
from headway.torch.optimizers import Optimizer
from headway.training import memory, muon
from headway.training.loop import NotFinite, Step, differences
from headway.training.settings import TrainingConfig, learning_rate

Forward = Callable[..., Tensor]  # a model, compiled or not


@runtime_checkable
class Task(Protocol):
    """What a model learns: batches, their losses, and an exam."""

    def losses(self, forward: Forward, step: int) -> Iterator[Tensor]:
        """The parts, one a micro batch, that add up to the mean loss of a step's batch."""

    def tokens(self, step: int) -> int:
        """How many tokens were learnt from when `step` steps are done."""

    def exam(self, forward: Forward) -> float:
        """The mean loss over what is held out, in nats a token."""


@final
class Trainer:
    """A model, a GPT or a Seq2Seq, on its way, trained in place on the device where it lies.

    Gradients are those of the mean loss over all tokens of a batch, however it is cut into micro
    batches, and are clipped. The validation loss comes with every `evaluate_every`th step and
    with the last. step: how many steps are done.
    """

    def __init__(self, model: Any, task: Task, config: TrainingConfig) -> None:
        memory.keep()
        self.model, self.task, self.config, self.step = model, task, config, 0
        self.device = next(model.parameters()).device
        self._parameters = list(model.parameters())
        self._optimizer = Optimizer(model, config)
        self._forward = torch.compile(model) if config.compile else model

    @property
    def parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(p.numel() for p in self._parameters)

    @property
    def place(self) -> str:
        """What it runs on."""
        return self.device.type

    def query_norms(self) -> list[float]:
        """Of each layer, the norm of W_query's gradient in the last step, clipped."""
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return [norm.item() for norm in muon.query_norms(gradients)]

    def advance(self) -> Step:
        """Take one step. Raises NotFinite, the weights untouched, when it leads nowhere."""
        rate = learning_rate(self.step, self.config)
        if not self.model.training:  # a walk over all modules
            self.model.train()
        for parameter in self._parameters:
            parameter.grad = None
        loss = torch.zeros((), device=self.device)
        for part in self._losses(self._forward):
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        if not torch.isfinite(loss + norm):
            raise NotFinite(self._diagnosis(loss.item()))
        self._optimizer.step(rate)
        self.step += 1
        due = self.step == self.config.steps or self.step % self.config.evaluate_every == 0
        return Step(
            step=self.step,
            tokens=self.task.tokens(self.step),
            loss=loss.item(),
            learning_rate=rate,
            gradient_norm=norm.item(),
            validation=self.evaluate() if due else None,
        )

    def evaluate(self) -> float:
        """The mean loss over what is held out, in nats a token."""
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return self.task.exam(self.model)

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The weights and the optimiser's state, by name."""
        optimizer = self._optimizer.state()
        return {
            "model": weights.to_arrays(self.model),
            "optimizer": {name: tensor.numpy(force=True) for name, tensor in optimizer.items()},
        }

    def restore(
        self, step: int, state: Mapping[str, Mapping[str, np.ndarray]], machine: Mapping[str, Any]
    ) -> list[str]:
        """Go back to a state and its number of threads; what else is not as it was then.

        Raises KeyError for what is missing and ValueError for weights of another model.
        """
        if machine["device"] == self.place:  # JAX's may be of another kind
            torch.set_num_threads(machine["threads"])
        weights.fill(self.model, state["model"])
        tensors = {name: torch.from_numpy(array) for name, array in state["optimizer"].items()}
        self._optimizer.restore(step, tensors)
        self.step = step
        return differences(machine, self.machine())

    def machine(self) -> dict[str, Any]:
        """What must be the same for a resumed run to go on bit for bit."""
        return {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "engine": f"torch {torch.__version__}",
            "processor": platform.machine(),
            "kernels": tuning.digest(),
        }

    def _losses(self, forward: Forward) -> Iterator[Tensor]:
        with self._autocast():
            yield from self.task.losses(forward, self.step)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _diagnosis(self, loss: float) -> str:
        """Where it began: the first module whose output is not finite, else the first gradient."""
        found: list[str] = []

        def look(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) else output
                if isinstance(first, Tensor) and not torch.isfinite(first).all():
                    found.append(name)

            return hook

        hooks = [m.register_forward_hook(look(n)) for n, m in self.model.named_modules() if n]
        with torch.no_grad():
            for _ in self._losses(self.model):
                pass
        for hook in hooks:
            hook.remove()
        where = (
            f"the first output that is not finite is that of {found[0]}"
            if found
            else next(
                (
                    f"every output is finite, but the gradient of {name} is not"
                    for name, p in self.model.named_parameters()
                    if p.grad is not None and not torch.isfinite(p.grad).all()
                ),
                "every output and every gradient is finite, but not their norm",
            )
        )
        return (
            f"the loss of step {self.step + 1} is {loss}: {where}; a lower --learning-rate or "
            "--clip may help"
        )
