"""Is a run normal? Mistakes in its settings that people really make, and losses out of bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from headway.ladder.rungs import rung_named
from headway.training.recipes import Settings
from headway.training.runs import RunConfig
from headway.training.settings import TrainingConfig

NARROW = 16  # features of a head: below, a query can hardly tell keys apart
FAR = 8  # times the recipe's tokens a step, or a part of them
FAST = 4  # times the recipe's learning rate

# What decides neither what is learnt nor how the loss is measured.
_ANYHOW = ("seed", "evaluate_every", "save_every", "micro_batch", "precision", "compile")


def mistakes(config: RunConfig, recipe: Settings) -> Iterator[str]:
    """A sentence for each setting that looks like one. recipe: what the run began with."""
    model, training = config.model, config.training
    usual = {"context": model.context, **asdict(TrainingConfig()), **recipe["model"]}
    usual |= recipe["training"]
    own, theirs = training.batch * model.context, usual["batch"] * usual["context"]
    if not 1 / FAR <= own / theirs <= FAR:
        yield (
            f"a step has {own:,} tokens, the recipe's {theirs:,}: with so different a batch "
            "another learning rate is best"
        )
    if training.learning_rate > FAST * usual["learning_rate"]:
        yield (
            f"the learning rate {training.learning_rate:g} is far above the recipe's "
            f"{usual['learning_rate']:g}: the loss may jump, or never fall"
        )
    pair = (usual.get("layers"), usual.get("attention", {}).get("heads"))
    heads = model.attention.heads
    if (heads, model.layers) == pair and heads != model.layers:
        yield f"{model.layers} layers of {heads} heads: are heads and layers exchanged?"
    has_heads = config.rung is None or rung_named(config.rung).has_heads
    if model.d_k < NARROW and has_heads:
        yield (
            f"a head has {model.d_k} features, {NARROW} or more is usual: take fewer heads or "
            "a larger width"
        )


@dataclass(frozen=True)
class Bands:
    """Between which losses the runs of a recipe lie.

    config: of the recorded runs, without what does not matter. steps: of the evaluations; low and
    high: where another seed's loss lies with a probability of 99%.
    """

    recipe: str
    config: Mapping[str, Any]
    seeds: int
    steps: list[int]
    low: list[float]
    high: list[float]
    machine: Mapping[str, Any]

    def leaves(self, step: int, loss: float | None) -> str:
        """What is wrong with a loss on held-out text; empty when nothing is, or nobody knows."""
        if loss is None or step not in self.steps:
            return ""
        place = self.steps.index(step)
        low, high = self.low[place], self.high[place]
        if low <= loss <= high:
            return ""
        side = "below" if loss < low else "above"
        return (
            f"the validation loss {loss:.3f} after step {step:,} is {side} the {low:.3f} to "
            f"{high:.3f} where 99% of the runs of {self.recipe} should lie, by {self.seeds} that "
            "were recorded: has something changed?"
        )


def comparable(config: RunConfig) -> dict[str, Any]:
    """What two runs must have in common for the losses of one to tell of the other's."""
    whole = asdict(config)
    whole.pop("text")
    whole["training"] = {k: v for k, v in whole["training"].items() if k not in _ANYHOW}
    return whole


def bands(config: RunConfig) -> Bands | None:
    """Those of the recipe that this run is one of; None where there are none for it."""
    folder = resources.files("headway.training") / "bands"
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name.endswith(".json"):
            found = Bands(**json.loads(file.read_text(encoding="utf-8")))
            if found.config == comparable(config):
                return found
    return None
