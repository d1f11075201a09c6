"""Training in PyTorch: one step after another, each a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.data.batches import batch, evaluation
from headway.torch.gpt import GPT
from headway.training.settings import TrainingConfig, learning_rate


@dataclass(frozen=True)
class Step:
    """What one step did. step counts from 1; losses are in nats a token."""

    step: int
    tokens: int
    loss: float
    learning_rate: float
    gradient_norm: float
    validation: float | None


def training_steps(
    model: GPT,
    tokens: Int[np.ndarray, " tokens"],
    held_out: Int[np.ndarray, " others"],
    config: TrainingConfig,
) -> Iterator[Step]:
    """Train the model in place, a step for each item that is taken.

    AdamW (Loshchilov and Hutter 2019), gradients clipped. The validation loss comes with every
    `evaluate_every`th step and with the last.
    """
    context = model.config.context
    optimizer = torch.optim.AdamW(
        _groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
    )
    exam = evaluation(held_out, context, config.evaluation_windows)
    exam_inputs, exam_targets = (torch.from_numpy(each) for each in exam)
    for step in range(config.steps):
        rate = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        windows = batch(tokens, seed=config.seed, step=step, size=config.batch, context=context)
        model.train()
        inputs, targets = (torch.from_numpy(each) for each in windows)
        loss = _loss(model(inputs, seed=(config.seed, step)), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        last = step + 1 == config.steps
        yield Step(
            step=step + 1,
            tokens=(step + 1) * inputs.numel(),
            loss=loss.item(),
            learning_rate=rate,
            gradient_norm=norm.item(),
            validation=(
                evaluate(model, exam_inputs, exam_targets, config.batch)
                if last or (step + 1) % config.evaluate_every == 0
                else None
            ),
        )


@torch.no_grad()
def evaluate(
    model: GPT,
    inputs: Int[Tensor, "windows context"],
    targets: Int[Tensor, "windows context"],
    batch: int,
) -> float:
    """The mean loss over windows, in nats a token, `batch` windows at a time."""
    model.eval()
    total = 0.0
    for start in range(0, len(inputs), batch):
        some = slice(start, start + batch)
        total += _loss(model(inputs[some]), targets[some]).item() * len(inputs[some])
    return total / len(inputs)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _groups(model: GPT, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and norms do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
