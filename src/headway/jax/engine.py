"""The JAX implementation of `training.session.Engine`."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int, Integer

from headway import cache
from headway.attention.arrays import Array, widened
from headway.jax import gpt, sharding, weights
from headway.jax.generate import generate
from headway.jax.gpt import Model
from headway.jax.layers import Attention, Params
from headway.jax.processes import join
from headway.jax.train import Trainer
from headway.jax.weights import build
from headway.models.gpt import GPTConfig
from headway.training import memory
from headway.training.processes import ALONE, Processes
from headway.training.runs import Run, RunConfig

__all__ = ["FRAMEWORK", "assemble", "generate", "gradients", "join", "keep_memory"]
__all__ += ["load", "logits", "losses", "parameters", "readout", "trainer"]

FRAMEWORK = "flax"  # see `training.session.Engine`

# Programs that take longer to compile than this are kept between processes, unless the user has
# chosen another folder for them.
_WORTH_KEEPING = 0.3  # seconds
if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
    with suppress(OSError, RuntimeError):  # no home, or it is not writable
        jax.config.update("jax_compilation_cache_dir", str(cache.writable("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def trainer(
    config: RunConfig,
    data: tuple[Any, Any],
    device: str | None = None,
    model: Model | None = None,
    processes: Processes = ALONE,
) -> Trainer:
    """Create the trainer of a new run, and choose the settings that depend on the machine.

    All devices of all processes are used, but one process does not use more devices than there are
    windows in a batch. The default precision is bfloat16, on a CPU float32. Raises ValueError for a
    kind of device that this machine does not have.
    """
    available = devices(device)
    if processes.count == 1:
        available = available[: config.training.batch]
    fast = available[0].platform != "cpu"
    training = replace(
        config.training,
        precision=config.training.precision or ("bfloat16" if fast else "float32"),
        compile=config.training.compile or False,  # only used if the run is resumed in PyTorch
    )
    model = build(config) if model is None else replace(model, config=config.gpt)
    layout = sharding.over(available)
    return Trainer(model, *data, training, layout, processes, config.separator)


def keep_memory() -> None:
    """Let this process keep freed memory for the next step, on a CPU."""
    if jax.default_backend() == "cpu":
        memory.keep(of_any_size=True)


def devices(kind: str | None) -> list[jax.Device]:
    """Return all devices of this kind, by default JAX's default kind, of all processes.

    Raises ValueError if there are none.
    """
    try:
        return jax.devices(kind)
    except RuntimeError:
        default = jax.default_backend()
        raise ValueError(
            f"JAX has no {kind} here; remove --device to use the default, {default}"
        ) from None


def load(
    run: Run, checkpoint: Path | None = None, device: str | None = None, dtype: str | None = None
) -> Model:
    """Load the model of a run with the weights of a checkpoint, by default the last one."""
    model = weights.load(run, checkpoint)
    return replace(model, params=_placed(model.params.items(), device, dtype))


def assemble(
    config: GPTConfig,
    parameters: Iterable[tuple[str, Array]],
    device: str | None = None,
    dtype: str | None = None,
) -> Model:
    """Build a GPT from its parameters; see `training.session.Engine`."""
    return Model(_placed(parameters, device, dtype), config)


def _placed(
    parameters: Iterable[tuple[str, Array]], device: str | None, dtype: str | None
) -> dict[str, Array]:
    """Return the parameters on a device and in a dtype."""
    mine = jax.process_index()
    chosen = next(one for one in devices(device) if one.process_index == mine)
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):  # JAX would compute in float32
        raise ValueError("float64 in JAX needs the environment variable JAX_ENABLE_X64=1")
    return {
        name: jax.device_put(value.astype(dtype or value.dtype), chosen)
        for name, value in parameters
    }


def parameters(model: Model) -> Params:
    """The parameters of a model by name."""
    return model.params


def logits(
    model: Model, tokens: Integer[np.ndarray, "batch tokens"]
) -> Float[Array, "batch tokens vocabulary"]:
    """The logits for these tokens, without dropout."""
    return _forward(model.params, jnp.asarray(tokens), model.config, model.attention)


def readout(
    model: Model, stream: Float[np.ndarray, "batch tokens width"]
) -> Float[Array, "batch tokens vocabulary"]:
    """Return the logits of the residual stream after any layer; see `training.session.Engine`."""
    dtype = next(iter(model.params.values())).dtype
    return _readout(model.params, jnp.asarray(stream, dtype), model.config)


def losses(
    model: Model, tokens: Integer[np.ndarray, "batch tokens"]
) -> Float[np.ndarray, "batch targets"]:
    """Return the loss of every token after the first; see `training.session.Engine`."""
    computed = _losses(model.params, jnp.asarray(tokens), model.config, model.attention)
    return np.asarray(computed, dtype=np.float64)


def gradients(
    model: Model, inputs: Integer[np.ndarray, "batch tokens"], targets: Integer[np.ndarray, "b t"]
) -> dict[str, Array]:
    """Return the gradient of the mean loss, without dropout, by parameter name."""
    tokens = jnp.asarray(inputs), jnp.asarray(targets)
    return dict(_gradients(model.params, *tokens, model.config, model.attention))


@partial(jax.jit, static_argnames="config")
def _readout(
    params: Params, stream: Float[Array, "batch tokens width"], config: GPTConfig
) -> Float[Array, "batch tokens vocabulary"]:
    return gpt.logits(params, gpt.normalized(params, stream, config), config)


@partial(jax.jit, static_argnames=("config", "attention"))
def _losses(
    params: Params, tokens: Int[Array, "batch tokens"], config: GPTConfig, attention: Attention
) -> Float[Array, "batch targets"]:
    features, _ = gpt.features(params, tokens[:, :-1], config, attention)

    def row(features_and_targets: tuple[Array, Array]) -> Array:  # of the batch, to save memory
        features, targets = features_and_targets
        logits = widened(gpt.logits(params, features, config))
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    return jax.lax.map(row, (features, tokens[:, 1:]))


def _mean_loss(
    params: Params,
    inputs: Int[Array, "batch tokens"],
    targets: Int[Array, "batch tokens"],
    config: GPTConfig,
    attention: Attention,
) -> Float[Array, ""]:
    """The mean loss of the logits, as `train.loss`, but also for the output layer of BERT."""
    logits = widened(gpt.forward(params, inputs, config, attention))
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


_forward = jax.jit(gpt.forward, static_argnames=("config", "attention"))
_gradients = jax.jit(jax.grad(_mean_loss), static_argnames=("config", "attention"))
