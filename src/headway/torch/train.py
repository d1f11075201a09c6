"""Training in PyTorch: one step after another, each a function of (seed, step)."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor, nn

from headway.data.batches import batch, evaluation
from headway.kernels import choice
from headway.torch import devices, weights
from headway.torch.gpt import GPT
from headway.torch.optimizers import Optimizer
from headway.training.loop import NotFinite, Step
from headway.training.settings import TrainingConfig, learning_rate


@final
class Trainer:
    """A GPT on its way, trained in place on the device where it lies.

    Gradients are those of the mean loss over all tokens of a batch, however it is cut into micro
    batches, and are clipped. The validation loss comes with every `evaluate_every`th step and
    with the last. step: how many steps are done.
    """

    def __init__(
        self,
        model: GPT,
        tokens: Integer[np.ndarray, " tokens"],
        held_out: Integer[np.ndarray, " others"],
        config: TrainingConfig,
    ) -> None:
        devices.keep_memory()
        self.model, self.config, self.step = model, config, 0
        self.device = next(model.parameters()).device
        self._tokens, self._parameters = tokens, list(model.parameters())
        exam = evaluation(held_out, model.config.context, config.evaluation_windows)
        self._exam = [torch.from_numpy(each).to(self.device) for each in exam]
        self._optimizer = Optimizer(model, config)
        self._forward = torch.compile(model) if config.compile else model

    def advance(self) -> Step:
        """Take one step. Raises NotFinite, the weights untouched, when it leads nowhere."""
        rate = learning_rate(self.step, self.config)
        inputs, targets = self._batch()
        if not self.model.training:  # a walk over all modules
            self.model.train()
        for parameter in self._parameters:
            parameter.grad = None
        loss = torch.zeros((), device=self.device)
        for some, seed in self._micro_batches():
            part = self._loss(self._forward, inputs[some], targets[some], seed)
            part = part * (targets[some].numel() / targets.numel())
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        if not torch.isfinite(loss + norm):
            raise NotFinite(self._diagnosis(inputs, loss.item()))
        self._optimizer.step(rate)
        self.step += 1
        due = self.step == self.config.steps or self.step % self.config.evaluate_every == 0
        return Step(
            step=self.step,
            tokens=self.step * inputs.numel(),
            loss=loss.item(),
            learning_rate=rate,
            gradient_norm=norm.item(),
            validation=self.evaluate(*self._exam) if due else None,
        )

    def evaluate(
        self, inputs: Int[Tensor, "windows context"], targets: Int[Tensor, "windows context"]
    ) -> float:
        """The mean loss over windows, in nats a token."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for first in range(0, len(inputs), self._at_once):
                some = slice(first, first + self._at_once)
                loss = self._loss(self.model, inputs[some], targets[some], None)
                total += loss.double().cpu() * len(inputs[some])
        return total.item() / len(inputs)

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
        torch.set_num_threads(machine["threads"])
        weights.fill(self.model, state["model"])
        tensors = {name: torch.from_numpy(array) for name, array in state["optimizer"].items()}
        self._optimizer.restore(step, tensors)
        self.step = step
        now = self.machine()
        return [
            f"{name} was {machine[name]}, is {now[name]}"
            for name in now
            if now[name] != machine[name]
        ]

    def machine(self) -> dict[str, Any]:
        """What must be the same for a resumed run to go on bit for bit."""
        return {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "processor": platform.machine(),
            "kernels": choice.digest(),
        }

    @property
    def _at_once(self) -> int:
        return self.config.micro_batch or self.config.batch

    def _batch(self) -> list[Tensor]:
        windows = batch(
            self._tokens,
            seed=self.config.seed,
            step=self.step,
            size=self.config.batch,
            context=self.model.config.context,
        )
        return [torch.from_numpy(each).to(self.device) for each in windows]

    def _micro_batches(self) -> Iterator[tuple[slice, tuple[Any, ...]]]:
        """The rows of each, and its seed."""
        # torch.compile takes a number as fixed; without it numbers are quicker.
        number = torch.tensor if self.config.compile else int
        for first in range(0, self.config.batch, self._at_once):
            seed = (self.config.seed, number(self.step), number(first))
            yield slice(first, first + self._at_once), seed

    def _loss(self, forward: Any, inputs: Tensor, targets: Tensor, seed: Any) -> Tensor:
        with self._autocast():
            logits = forward(inputs, seed=seed)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return nn.functional.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _diagnosis(self, inputs: Tensor, loss: float) -> str:
        """Where it began: the first module whose output is not finite, else the first gradient."""
        found: list[str] = []

        def look(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
                if not torch.isfinite(output).all():
                    found.append(name)

            return hook

        hooks = [m.register_forward_hook(look(n)) for n, m in self.model.named_modules() if n]
        with torch.no_grad(), self._autocast():
            for some, seed in self._micro_batches():
                self.model(inputs[some], seed=seed)
        for hook in hooks:
            hook.remove()
        where = (
            f"the first output that is not finite is that of {found[0]}"
            if found
            else next(
                f"every output is finite, but the gradient of {name} is not"
                for name, p in self.model.named_parameters()
                if p.grad is not None and not torch.isfinite(p.grad).all()
            )
        )
        return (
            f"the loss of step {self.step + 1} is {loss}: {where}; a lower --learning-rate or "
            "--clip may help"
        )
