"""The PyTorch implementation of `training.session.Engine`."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from headway.attention.arrays import widened
from headway.models.gpt import GPTConfig
from headway.torch import devices, weights
from headway.torch.generate import generate
from headway.torch.gpt import GPT
from headway.torch.processes import join
from headway.torch.sharding import Sharded
from headway.torch.tasks import TASKS, NextToken
from headway.torch.train import Trainer
from headway.torch.translate import answers
from headway.training import memory
from headway.training.processes import ALONE, Processes
from headway.training.runs import Run, RunConfig

__all__ = ["FRAMEWORK", "answers", "assemble", "generate", "gradients", "join", "keep_memory"]
__all__ += ["load", "logits", "losses", "parameters", "readout", "trainer"]

FRAMEWORK = "pt"  # see `training.session.Engine`
_ROWS = 1024  # tokens whose logits are computed at once


def trainer(
    config: RunConfig,
    data: tuple[Any, Any],
    device: str | None = None,
    model: GPT | None = None,
    processes: Processes = ALONE,
) -> Trainer:
    """Create the trainer of a new run, and choose the settings that depend on the machine.

    The weights of `model` are copied to a model with the config of the run, whose dropout may be
    another one.
    """
    chosen, is_alone = devices.choose(device), processes.count == 1
    if model is None:
        # In several processes, no process holds all parameters.
        trained: Any = weights.build(config, "cpu" if is_alone else "meta")
    else:
        trained = GPT(config.gpt, seed=None)
        trained.load_state_dict(model.state_dict())
    if config.training.activation_checkpointing:
        recompute_blocks(trained)
    if is_alone:
        trained = trained.to(chosen)
    windows = config.training.steps * config.training.batch
    tokens = windows * config.window if config.task == "next-token" else windows
    parameters = sum(p.numel() for p in trained.parameters())
    training = devices.suited(parameters, tokens, config.training, chosen)
    if config.task != "next-token":
        return Trainer(trained, TASKS[config.task](trained, *data, training), training)
    task = NextToken(
        trained, *data, training, separator=config.separator, device=chosen, processes=processes
    )
    sharded = None if is_alone else Sharded(trained, training, processes, chosen)
    return Trainer(trained, task, training, processes, sharded)


def recompute_blocks(model: nn.Module) -> None:
    """Let the backward pass compute each block again, instead of keeping its activations.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". Raises ValueError for a model
    without blocks.
    """
    if not isinstance(model, GPT):
        raise ValueError("activation_checkpointing works in a GPT only; remove this setting")
    for block in model.blocks:
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # dropout depends on no random state
        )


def keep_memory() -> None:
    """Let this process keep freed memory for the next step."""
    memory.keep()


def load(
    run: Run, checkpoint: Path | None = None, device: str | None = None, dtype: str | None = None
) -> GPT:
    """Load the model of a run with the weights of a checkpoint, by default the last one."""
    model: GPT = weights.load(run, checkpoint).eval()
    return model.to(devices.choose(device), None if dtype is None else getattr(torch, dtype))


def assemble(
    config: GPTConfig,
    parameters: Iterable[tuple[str, Tensor]],
    device: str | None = None,
    dtype: str | None = None,
) -> GPT:
    """Build a GPT from its parameters; see `training.session.Engine`."""
    kind = None if dtype is None else getattr(torch, dtype)
    return weights.assemble(config, parameters, devices.choose(device), kind).eval()


def parameters(model: GPT) -> dict[str, Tensor]:
    """The parameters of a model by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def logits(
    model: GPT, tokens: Integer[np.ndarray, "batch tokens"]
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Return the logits for these tokens, without gradients and dropout."""
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            output: Tensor = model.eval()(torch.from_numpy(tokens).to(device))
        return output
    finally:
        model.train(training)


def readout(
    model: GPT, stream: Float[np.ndarray, "batch tokens width"]
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Return the logits of the residual stream after any layer; see `training.session.Engine`."""
    with torch.no_grad():
        last = model.normalized(torch.from_numpy(stream).to(model.head.weight))
        return model.logits(last)


def losses(
    model: GPT, tokens: Integer[np.ndarray, "batch tokens"]
) -> Float[np.ndarray, "batch targets"]:
    """Return the loss of every token after the first; see `training.session.Engine`."""
    device = next(model.parameters()).device
    inputs, targets = (torch.from_numpy(x).to(device) for x in (tokens[:, :-1], tokens[:, 1:]))
    training = model.training
    with torch.no_grad():
        rows = torch.split(model.eval().features(inputs).flatten(0, 1), _ROWS)
        words = torch.split(targets.flatten(), _ROWS)
        losses = [
            cross_entropy(widened(model.logits(row)), word, reduction="none")
            for row, word in zip(rows, words, strict=True)
        ]
    model.train(training)
    return torch.cat(losses).reshape(targets.shape).double().numpy(force=True)


def gradients(
    model: GPT, inputs: Integer[np.ndarray, "batch tokens"], targets: Integer[np.ndarray, "b t"]
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss, without dropout, by parameter name."""
    training, device = model.training, next(model.parameters()).device
    named = dict(model.named_parameters())
    model.eval()
    logits = model(torch.from_numpy(inputs).to(device))
    loss = cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).to(device).flatten())
    model.train(training)
    return dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))
