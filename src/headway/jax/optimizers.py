"""AdamW for all parameters, or Muon for the matrices and AdamW for the rest, with optax.

The state has the same names as in PyTorch: adamw.first.NAME, adamw.second.NAME,
muon.momentum.NAME.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from headway.attention.arrays import Array
from headway.jax.layers import Params
from headway.training import muon
from headway.training.settings import TrainingConfig

# The names of the optimizer's state in Headway, and in optax.
_NAMES = {"adamw.first": "mu", "adamw.second": "nu", "muon.momentum": "momentum"}


def optimizer(params: Params, config: TrainingConfig) -> optax.GradientTransformation:
    """Return the transformation of gradients into updates, not yet multiplied by -learning_rate.

    AdamW (Loshchilov and Hutter 2019; betas 0.9 and 0.95); Muon as in `training.muon`. Weight decay
    applies to matrices, not to biases and norms.
    """
    with_muon = config.optimizer == "muon"
    # The authors of Muon iterate in bfloat16, which is many times as fast where it is used.
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else None
    labels = {
        n: "muon" if with_muon and muon.is_matrix(n, p.ndim) else "adamw" for n, p in params.items()
    }
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim >= 2, tree)
    )
    adamw = optax.chain(optax.scale_by_adam(0.9, 0.95), decay)
    return optax.partition({"adamw": adamw, "muon": optax.chain(by_muon(dtype), decay)}, labels)


class MuonState(NamedTuple):
    """The state of Muon. momentum: the running mean of the gradients."""

    momentum: Any


def by_muon(dtype: Any = None) -> optax.GradientTransformation:
    """Return Muon as an optax transformation; dtype: as in `training.muon.updates`."""

    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params))

    def update(gradients: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        def interpolated(one: Any, other: Any) -> Any:
            return jax.tree.map(
                lambda a, b: muon.MOMENTUM * a + (1 - muon.MOMENTUM) * b, one, other
            )

        momentum = interpolated(state.momentum, gradients)
        ahead = {n: m for n, m in interpolated(momentum, gradients).items() if _is_array(m)}
        return {**gradients, **muon.updates(ahead, dtype)}, MuonState(momentum)

    return optax.GradientTransformation(init, update)


def named(state: Any) -> dict[str, Array]:
    """The arrays of the optimizer's state, by the names that both engines use."""
    return {
        f"{kind}.{name}": value
        for kind, field in _NAMES.items()
        for tree in _all(state, field)
        for name, value in tree.items()
        if _is_array(value)
    }


def with_named(state: Any, step: int, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return the state with these values and step count. Raises KeyError for missing arrays."""
    filled = {}
    for kind, field in _NAMES.items():
        for tree in _all(state, field):
            filled[field] = {
                name: jnp.asarray(arrays[f"{kind}.{name}"], value.dtype)
                if _is_array(value)
                else value
                for name, value in tree.items()
            }
    return optax.tree.set(state, count=jnp.asarray(step, jnp.int32), **filled)


def _all(state: Any, field: str) -> list[Any]:
    return [value for _, value in optax.tree.get_all_with_path(state, field)]


def _is_array(value: Any) -> bool:
    return not isinstance(value, optax.MaskedNode)
