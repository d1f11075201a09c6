"""Training steps in JAX, compiled, each a function of (seed, step)."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from headway.attention.arrays import Array
from headway.attention.kernels import tuning
from headway.attention.masks import ended_by
from headway.attention.spec import DEFAULT, Spec
from headway.data import batches
from headway.jax import gpt, sharding, weights
from headway.jax.gpt import Model
from headway.jax.layers import Attention, Params, multi_head
from headway.jax.loss import LOGITS, linear_cross_entropy
from headway.jax.optimizers import named, optimizer, with_named
from headway.models.gpt import GPTConfig
from headway.tracing import trace
from headway.training.loop import NotFinite, Pending, Step, differences
from headway.training.processes import ALONE, Processes, first_text, share
from headway.training.settings import TrainingConfig, learning_rate

Windows = Int[Array, "batch tokens"]
Number = Float[Array, ""]


class State(NamedTuple):
    """The parameters, and the state of the optimizer; a step updates both."""

    params: Params
    optimizer: Any


class Done(NamedTuple):
    """The loss of a step, and the norm of all gradients before clipping.

    is_finite: whether both are finite, in this step and all before.
    """

    loss: Number
    norm: Number
    is_finite: Bool[Array, ""]


def loss(
    params: Params,
    inputs: Windows,
    targets: Windows,
    config: GPTConfig,
    attention: Attention = multi_head,
    spec: Spec = DEFAULT,
    *,
    smoothing: float = 0.0,
    bfloat16: bool = False,
    activation_checkpointing: bool = False,
    logits_at_once: int = LOGITS,
    separator: int | None = None,
) -> Number:
    """The mean cross-entropy in nats per token, computed in float32 or a wider dtype.

    smoothing: the fraction of a target's probability that is spread over all tokens.
    bfloat16: run the model in bfloat16; the parameters and their gradients keep their dtype.
    activation_checkpointing: as in `gpt.features`. logits_at_once: as in `linear_cross_entropy`.
    separator: the token that ends a document, if documents are masked from each other.
    """
    if separator is not None:
        spec = ended_by(separator, inputs, spec)
    if bfloat16:
        params = {name: p.astype(jnp.bfloat16) for name, p in params.items()}
    features, _ = gpt.features(
        params, inputs, config, attention, spec, activation_checkpointing=activation_checkpointing
    )
    return linear_cross_entropy(
        features.reshape(-1, config.width),
        params["embedding.weight" if config.tied else "head.weight"],
        targets.reshape(-1),
        smoothing=smoothing,
        logits_at_once=logits_at_once,
    )


def step_function(
    model: Model,
    training: TrainingConfig,
    transform: optax.GradientTransformation,
    layout: sharding.Layout,
    separator: int | None = None,
) -> Callable[..., tuple[State, Done]]:
    """Return the function of one training step, to be compiled with `jax.jit`.

    It maps (state, inputs, targets, number of the step, learning rate, whether all steps so far
    were finite) to (state, Done). The gradient is that of the mean loss over all tokens, even if
    the batch is split: over the devices of the layout, and into micro-batches on each of them. It
    is clipped. If the loss or the gradient of this step or of one before is not finite, the state
    is returned unchanged. separator: as in `loss`.
    """
    config, attention = model.config, model.attention
    bfloat16 = training.precision == "bfloat16"
    options: Any = {
        "smoothing": training.label_smoothing,
        "bfloat16": bfloat16,
        "activation_checkpointing": training.activation_checkpointing,
        "separator": separator,
    }

    def of_device(
        params: Params, inputs: Windows, targets: Windows, number: Int[Array, ""], device: Any
    ) -> tuple[Number, Params]:
        start, rows = layout.first(training.batch, device), len(inputs)

        def gradients(first: int | Array, count: int) -> tuple[Number, Params]:
            tokens, following = (
                jax.lax.dynamic_slice_in_dim(array, first, count) for array in (inputs, targets)
            )

            spec = Spec(seed=(training.seed, number), batch_offset=start + first)

            def part(params: Params) -> Number:
                mean = loss(params, tokens, following, config, attention, spec, **options)
                return mean * (count / training.batch)

            return jax.value_and_grad(part)(params)

        return _summed(gradients, rows, training.micro_batch or rows)

    gradients = layout.summed(of_device)

    def step(
        state: State,
        inputs: Windows,
        targets: Windows,
        number: Int[Array, ""],
        rate: Number,
        is_finite: Bool[Array, ""],
    ) -> tuple[State, Done]:
        total, grads = gradients(state.params, inputs, targets, number)
        norm = optax.tree.norm(grads)
        clipped = optax.tree.scale(jnp.minimum(1.0, training.clip / (norm + 1e-6)), grads)
        updates, optimizer = transform.update(clipped, state.optimizer, state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(-rate, updates))
        is_finite = is_finite & jnp.isfinite(total + norm)
        state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), State(params, optimizer), state
        )
        return state, Done(total, norm, is_finite)

    return step


def _summed(
    gradients: Callable[[int | Array, int], tuple[Number, Params]], rows: int, at_once: int
) -> tuple[Number, Params]:
    """The loss and gradients of all rows, computed for `at_once` rows at a time."""
    if at_once >= rows:
        return gradients(0, rows)
    full, rest = divmod(rows, at_once)
    sums = gradients(0, at_once)
    if full > 1:
        firsts = at_once * jnp.arange(1, full, dtype=jnp.int32)
        sums, _ = jax.lax.scan(
            lambda sums, first: (optax.tree.add(sums, gradients(first, at_once)), None),
            sums,
            firsts,
        )
    return optax.tree.add(sums, gradients(full * at_once, rest)) if rest else sums


@final
class Trainer:
    """A trainer that updates a model one step at a time; implements `training.loop.Trainer`.

    The given parameters are copied, because each step reuses the memory of the previous parameters.
    layout: the distribution over the devices of all processes; by default everything is on the
    first device. A micro-batch is the number of windows that each device processes at a time. The
    validation loss is computed every `evaluate_every` steps and after the last step.
    step: the number of started steps. processes: those that train together.
    """

    def __init__(
        self,
        model: Model,
        tokens: batches.Tokens,
        held_out: batches.Tokens,
        config: TrainingConfig,
        layout: sharding.Layout | None = None,
        processes: Processes = ALONE,
        separator: int | None = None,
    ) -> None:
        self.config, self.step, self.processes = config, 0, processes
        self._separator = separator
        self._layout = sharding.over(jax.devices()[:1]) if layout is None else layout
        self._is_finite = self._layout.state(jnp.array(True))  # of all steps so far
        self._model, self._text = replace(model, params={}), tokens
        transform = optimizer(model.params, config)
        params = self._layout.state({n: jnp.array(p, copy=True) for n, p in model.params.items()})
        self._state = State(params, self._layout.state(transform.init(model.params)))
        shardings = jax.tree.map(lambda x: x.sharding, self._state)
        self._advance = jax.jit(
            step_function(model, config, transform, self._layout, separator),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        self._loss = jax.jit(self._layout.summed(self._validation_loss))
        self._window = config.length or model.config.context
        windows = batches.evaluation(held_out, self._window, config.evaluation_windows)
        at_once = config.micro_batch or self._layout.most(config.batch)
        at_once *= self._layout.mesh.size
        self._validation = [
            (len(some[0]), *self._layout.batch(len(some[0]), partial(_rows_of, some)))
            for first in range(0, len(windows[0]), at_once)
            for some in [tuple(tokens[first : first + at_once] for tokens in windows)]
        ]

    @property
    def model(self) -> Model:
        """The model with the current parameters, whose memory the next step reuses."""
        return replace(self._model, params=self._state.params)

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(p.size for p in self._state.params.values())

    @property
    def device(self) -> str:
        """The kind of device; after their number if this process has several, as in "4 gpu"."""
        devices = self._layout.devices
        kind = str(devices[0].platform)
        return kind if len(devices) == 1 else f"{len(devices)} {kind}"

    @property
    def device_name(self) -> str:
        """The devices with the name of their model, for messages."""
        model = str(self._layout.devices[0].device_kind)
        return self.device if model == "cpu" else f"{self.device} ({model})"

    def product(self, size: int) -> Callable[[], object]:
        """Return a function that multiplies matrices; see `training.loop.Trainer`."""
        dtype = jnp.bfloat16 if self.config.precision == "bfloat16" else jnp.float32
        one, other = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
        return lambda: (one @ other).block_until_ready()

    def start(self) -> Pending:
        """Start the next step, as described in `training.loop.Trainer`."""
        rate = learning_rate(self.step, self.config)
        windows = self._layout.batch(self.config.batch, self._rows)
        self._state, done = self._advance(
            self._state,
            *windows,
            np.int32(self.step),
            np.asarray(rate, jnp.result_type(float)),
            self._is_finite,
        )
        self._is_finite = done.is_finite
        self.step += 1
        validation = self.evaluate() if self.config.is_evaluated(self.step) else None
        return _Pending(self, self.step, rate, validation, done)

    def advance(self) -> Step:
        """Take one step and wait for it; see `training.loop.Trainer`."""
        return self.start().result()

    def tokens(self, step: int) -> int:
        """Return the number of tokens in the first `step` steps."""
        return step * self.config.batch * self._window

    def evaluate(self) -> float:
        """The mean loss over the held-out data, in nats per token."""
        total, count = 0.0, 0
        for rows, inputs, targets in self._validation:
            mean = self._loss(self._state.params, inputs, targets)  # summed over the devices
            total, count = total + float(mean) * self._layout.most(rows), count + rows
        return total / count

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The weights and the state of the optimizer, by name; of several processes, 0 has all."""
        parts = {"model": self._state.params, "optimizer": named(self._state.optimizer)}
        parts = {part: self._layout.local(arrays) for part, arrays in parts.items()}
        if self.processes.rank > 0:
            return {part: {} for part in parts}
        return {part: weights.to_arrays(arrays) for part, arrays in parts.items()}

    def restore(
        self, step: int, state: Mapping[str, Mapping[str, np.ndarray]], machine: Mapping[str, Any]
    ) -> list[str]:
        """Restore a state; see `training.loop.Trainer`."""
        params = weights.filled(self._state.params, state["model"])
        kept = with_named(self._state.optimizer, step, state["optimizer"])
        self._state = self._layout.state(State(params, kept))
        self._is_finite = self._layout.state(jnp.array(True))
        self.step = step
        return differences(machine, self.machine())

    def machine(self) -> dict[str, Any]:
        """Return what must be equal on two machines for a resumed run to be equal bit for bit."""
        return {
            "threads": int(os.environ.get("NPROC", os.cpu_count() or 1)),  # as XLA chooses it
            "processes": self.processes.count,
            "device": self.device,
            "engine": "jax",
            "version": jax.__version__,
            "processor": platform.machine(),
            "kernels": tuning.digest(),
        }

    def _rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return these rows of the next batch."""
        seed, size = self.config.seed, self.config.batch
        return batches.batch(
            self._text, seed=seed, step=self.step, size=size, context=self._window, rows=rows
        )

    def _validation_loss(
        self, params: Params, inputs: Windows, targets: Windows, device: Any
    ) -> Number:
        config, attention = self._model.config, self._model.attention
        bfloat16 = self.config.precision == "bfloat16"
        options: Any = {"bfloat16": bfloat16, "separator": self._separator}
        return loss(params, inputs, targets, config, attention, **options)

    def failed(self, step: int, loss: float) -> NotFinite:
        """Return the error of a step; the next one that is started has this number again."""
        self.step, self._is_finite = step - 1, self._layout.state(jnp.array(True))
        return NotFinite.at(step, loss, self._diagnosis())

    def _diagnosis(self) -> str:
        """Describe the first traced value that is not finite, or else the first such gradient."""
        params, model = self._layout.local(self._state.params), self._model
        rows = share(self.config.batch, self.processes)
        windows = self._rows(slice(rows.start, rows.stop))
        spec = Spec(seed=(self.config.seed, self.step), batch_offset=rows.start)
        arguments = (*windows, model.config, model.attention, spec)
        options: Any = {"separator": self._separator}
        with trace() as steps:
            loss(params, *arguments, **options)
        # Masked scores are -inf in every step.
        values = {name: value for name, value in steps.items() if not name.endswith("masked")}
        bad = [name for name, value in values.items() if not np.isfinite(np.asarray(value)).all()]
        if name := first_text(self.processes, "".join(bad[:1])):
            return f"the first value that is not finite is {name}"
        gradients = jax.grad(loss)(params, *arguments, **options)
        bad = [n for n, value in gradients.items() if not np.isfinite(np.asarray(value)).all()]
        if name := first_text(self.processes, "".join(bad[:1])):
            return f"every value is finite, but the gradient of {name} is not"
        return "every value and every gradient is finite, but not their norm"


def _rows_of(windows: Sequence[np.ndarray], rows: slice) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = windows
    return inputs[rows], targets[rows]


@final
class _Pending(NamedTuple):
    """A started step; see `training.loop.Pending`."""

    trainer: Trainer
    step: int
    learning_rate: float
    validation: float | None
    done: Done

    def is_ready(self) -> bool:
        # Several processes read a step at the same time.
        return self.trainer.processes.count == 1 and bool(self.done.norm.is_ready())

    def result(self) -> Step:
        loss, norm = float(self.done.loss), float(self.done.norm)
        if not np.isfinite(loss + norm):
            raise self.trainer.failed(self.step, loss)
        tokens = self.trainer.tokens(self.step)
        return Step(self.step, tokens, loss, self.learning_rate, norm, self.validation)
