"""Compare how two models are trained: the loss, all gradients, and the optimizer's updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Self, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headway import engines
from headway.divergence.measure import Limits, difference, limit
from headway.divergence.operations import logits_of
from headway.divergence.parameters import Match, Tensors, matches_of
from headway.divergence.sides import Module, Named
from headway.torch.optimizers import Optimizer
from headway.training.settings import TrainingConfig

SAME = 1e-6  # of updates, which are both computed in float64 from the same gradients
# Gradients are compared relative to at least this part of the largest number of all gradients.
SMALL = 1e-3
# The gradient of the second update is another one, because the betas do not matter in the first.
SECOND = -0.5


@dataclass(frozen=True)
class Compared:
    """A loss, a gradient or an update. value: None if it was not found in B.

    expected, value: of A and B. note: what is known about the difference. is_wrong: whether they
    differ by more than rounding explains. error: the difference.
    """

    name: str
    expected: Tensor
    value: Tensor | None
    limit: float
    note: str = ""
    is_wrong: bool = False
    error: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        expected: Tensor,
        value: Tensor,
        limit: float,
        note: str = "",
        least: float = 0,
    ) -> Self:
        """Compare two values; least: as in `measure.difference`."""
        error = difference(expected, value, least)
        return cls(name, expected, value, limit, note, error > limit, error)


@dataclass(frozen=True)
class Training:
    """The loss, the gradients from the loss on, and the updates, if B has an optimizer.

    If the loss of B is wrong, its gradients are those with the loss of A.
    """

    loss: Compared
    gradients: tuple[Compared, ...]
    updates: tuple[Compared, ...]


def trained(one: Named, two: Named | Module, tokens: np.ndarray) -> Training:
    """Compare the training of two models on tokens (batch, tokens).

    B's loss and optimizer are its own, if it has any. Raises ValueError if one of them fails.
    """
    is_masked = one.is_masked
    exact = _Model(one.in_torch, tokens, "float64", is_masked)
    rounded = _Model(one.in_torch, tokens, "float32", is_masked)
    # Some gradients are 0 in theory, such as those of the keys' biases.
    least = SMALL * max(float(x.abs().max()) for x in exact.gradients.values())
    limits = {
        name: limit(difference(x, rounded.gradients[name], least), torch.float32)
        for name, x in exact.gradients.items()
    }
    most = limit(difference(exact.loss, rounded.loss), torch.float32)
    del rounded
    a = exact if one.in_torch is one else _Model(one, tokens, "float64", is_masked)
    b = _Model(two, tokens, "float64", is_masked)
    candidates = _places(a, b)
    loss = Compared.of("loss", a.loss, b.loss, most)
    gradients, places = _gradients(a.gradients, b.gradients, candidates, limits, least)
    is_wrong = any(x.is_wrong for x in gradients)
    if two.loss is not None and (loss.is_wrong or is_wrong):
        b.differentiate(is_own=False)
        gradients, places = _gradients(a.gradients, b.gradients, candidates, limits, least)
        if is_wrong and not loss.is_wrong and not any(x.is_wrong for x in gradients):
            note = "its value is right, and its gradient is wrong"
            loss = replace(loss, note=note, is_wrong=True)
    has_updates = not (a.is_jax or b.is_jax) and bool(two.optimizer or two.training)
    updates = _updates(a, b, places) if has_updates else []
    return Training(loss, tuple(gradients), tuple(updates))


@final
class _Model:
    """A model in a number format, with its loss on the tokens and all gradients."""

    def __init__(
        self, side: Named | Module, tokens: np.ndarray, dtype: str, is_masked: bool
    ) -> None:
        self.side, self.tokens = side, tokens
        self.is_jax = side.settings.engine == "jax"
        self.inputs, self.targets = (tokens, tokens) if is_masked else _next(tokens)
        if isinstance(side, Module):
            self.model = side.model(dtype)
        else:
            loaded = side.load("float32" if self.is_jax else dtype)
            self.model = loaded if self.is_jax else deepcopy(loaded)
        self.differentiate()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By name, on the CPU."""
        if self.is_jax:
            values = engines.engine_named("jax").parameters(self.model)
            return {name: torch.from_numpy(np.array(x)) for name, x in values.items()}
        return {name: x.detach().cpu() for name, x in self.model.named_parameters()}

    def differentiate(self, *, is_own: bool = True) -> None:
        """Compute the loss and the gradients; is_own: of the model's own loss, if it has one."""
        if self.is_jax:
            engine = engines.engine_named("jax")
            logits = torch.from_numpy(np.array(engine.logits(self.model, self.inputs)))
            self.loss = self._mean(logits.double())
            values = engine.gradients(self.model, self.inputs, self.targets)
            self.gradients = {n: torch.from_numpy(np.array(x)).double() for n, x in values.items()}
            return
        device = next((x.device for x in self.model.parameters()), None)
        try:
            named = self.side if isinstance(self.side, Named) else None
            with named.with_kernel(self.model) if named else nullcontext():
                if is_own and self.side.loss is not None:
                    loss = self.side.loss(self.model, torch.from_numpy(self.tokens).to(device))
                else:
                    inputs = torch.from_numpy(self.inputs).to(device)
                    loss = self._mean(logits_of(self.model(inputs)))
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
        except (Exception, SystemExit) as error:
            what = f"the loss of {self.side.title}, or its gradient"
            raise ValueError(f"{what}, raised {type(error).__name__}: {error}") from error
        self.loss = loss.detach().double().cpu()
        self.gradients = {
            name: (torch.zeros_like(x) if x.grad is None else x.grad).double().cpu()
            for name, x in self.model.named_parameters()
        }
        self.model.zero_grad()  # which only removes them

    def _mean(self, logits: Tensor) -> Tensor:
        targets = torch.from_numpy(self.targets).to(logits.device)
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    def updates(self, gradients: Tensors) -> Iterator[dict[str, Tensor]]:
        """What the first two steps of the optimizer change, with these gradients."""
        named, step = dict(self.model.named_parameters()), self._optimizer()
        for factor in (1.0, SECOND):
            before = {name: x.detach().clone() for name, x in named.items()}
            for name, x in named.items():
                x.grad = (factor * gradients[name]).to(x)
            try:
                step()
            except Exception as error:
                what = f"the optimizer of {self.side.title} raised {type(error).__name__}: {error}"
                raise ValueError(what) from error
            yield {name: (x.detach() - before[name]).double().cpu() for name, x in named.items()}

    def _optimizer(self) -> Callable[[], object]:
        if self.side.optimizer is not None:
            made = self.side.optimizer(self.model)
            if not isinstance(made, torch.optim.Optimizer):
                what = f"optimizer(model) of {self.side.title} returned {type(made).__name__}"
                raise ValueError(f"{what}; expected a torch.optim.Optimizer")
            return made.step
        config = self.side.training or TrainingConfig()
        optimizer = Optimizer(self.model, replace(config, compile=False))
        is_finite = torch.tensor(data=True)
        return lambda: optimizer.step(config.learning_rate, is_finite)


def _next(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a model that predicts the next token."""
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def _places(a: _Model, b: _Model) -> dict[str, Match]:
    """Where the parameters of A are in B: those of the same name, or with the same values."""
    ours, theirs = a.parameters, b.parameters
    if all(name in theirs and theirs[name].shape == x.shape for name, x in ours.items()):
        return {name: Match.of_name(name, x) for name, x in ours.items()}
    return matches_of(ours, theirs)


def _gradients(
    a: Tensors, b: Tensors, places: Mapping[str, Match], limits: Limits, least: float
) -> tuple[list[Compared], dict[str, Match]]:
    """From the loss on: the last parameter first, and biases before the weights.

    Also returns the places of the gradients that were compared, one for each parameter.
    """
    output, compared = [], {}
    for name in reversed([*a]):
        title = f"gradients.{name}"
        if name not in places:
            output.append(Compared(title, a[name], None, limits[name]))
            continue
        values = [*places[name].gathered(b, is_gradient=True)]
        errors = [difference(a[name], x, least) for x in (*values, torch.stack(values).sum(0))]
        number, note = errors.index(min(errors[:-1])), ""
        compared[name] = places[name].choice(number)
        if min(errors[:-1]) > limits[name] >= errors[-1]:
            note = "two parameters have these values, and each has a part of the gradient"
        value = values[number]
        output.append(Compared.of(title, a[name], value, limits[name], note, least))
    return output, compared


def _updates(a: _Model, b: _Model, places: Mapping[str, Match]) -> list[Compared]:
    """The updates of both optimizers with the gradients of A: the first one that differs."""
    theirs = {name: torch.zeros_like(x) for name, x in b.parameters.items()}
    for name, match in places.items():
        match.scatter(a.gradients[name], theirs)
    output: dict[str, Compared] = {}
    expected_updates = [*a.updates(a.gradients)]  # before those of B, to save memory
    both = zip(expected_updates, b.updates(theirs), strict=True)
    for number, (ours, other) in enumerate(both):
        for name, expected in ours.items():
            is_known = name in places and not places[name].is_scaled
            if not is_known or (name in output and output[name].is_wrong):
                continue
            (value,) = places[name].gathered(other)
            note = "only the second update differs, as with other betas" if number else ""
            output[name] = Compared.of(f"updates.{name}", expected, value, SAME, note)
    return [*output.values()]
