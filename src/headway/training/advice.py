"""Warnings about a run: settings that are common mistakes, and unusual losses."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from headway.ladder.rungs import rung_named
from headway.training.recipes import Settings
from headway.training.runs import RunConfig
from headway.training.settings import TrainingConfig

# The limits of the warnings.
NARROW = 16  # features per head; with fewer, a query can hardly distinguish keys
FAR = 8  # ratio of the tokens per step to the recipe's, or the inverse ratio
FAST = 4  # ratio of the learning rate to the recipe's

# Settings that change neither what is learned nor how the loss is measured.
_IRRELEVANT = (
    *("seed", "evaluate_every", "save_every", "micro_batch", "precision", "compile"),
    "activation_checkpointing",
)


def mistakes(config: RunConfig, recipe: Settings) -> Iterator[str]:
    """Yield a warning for each setting that is probably a mistake.

    recipe: the settings of the recipe, without those of the user.
    """
    model, training = config.gpt, config.training
    usual = {"context": model.context, **asdict(TrainingConfig()), **recipe["model"]}
    usual |= recipe["training"]
    tokens, recipe_tokens = training.batch * config.window, usual["batch"] * usual["context"]
    if not 1 / FAR <= tokens / recipe_tokens <= FAR:
        yield (
            f"a step has {tokens:,} tokens, in the recipe {recipe_tokens:,}; such a different "
            "batch size needs another learning rate"
        )
    if training.learning_rate > FAST * usual["learning_rate"]:
        yield (
            f"the learning rate {training.learning_rate:g} is far above the recipe's "
            f"{usual['learning_rate']:g}; the loss may jump, or never fall"
        )
    pair = (usual.get("layers"), usual.get("attention", {}).get("heads"))
    heads = model.attention.heads
    if (heads, model.layers) == pair and heads != model.layers:
        yield f"{model.layers} layers of {heads} heads; did you exchange heads and layers?"
    has_heads = config.rung is None or rung_named(config.rung).has_heads
    if model.d_k < NARROW and has_heads:
        yield (
            f"a head has {model.d_k} features, but {NARROW} or more are usual; use fewer "
            "heads or a larger width"
        )


@dataclass(frozen=True)
class Bands:
    """The range of the validation losses of a recipe.

    config: the settings of the recorded runs, as returned by `comparable`. seeds: the number of
    runs. steps: the steps with an evaluation. low, high: for each of these steps, the limits
    between which the loss of another seed lies with a probability of 99%.
    """

    recipe: str
    config: Mapping[str, Any]
    seeds: int
    steps: list[int]
    low: list[float]
    high: list[float]
    machine: Mapping[str, Any]

    def leaves(self, step: int, loss: float | None) -> str:
        """Return a warning if a validation loss is outside the range, else an empty string.

        It is empty too if the loss is None or the range of this step is not known.
        """
        if loss is None or step not in self.steps:
            return ""
        index = self.steps.index(step)
        low, high = self.low[index], self.high[index]
        if low <= loss <= high:
            return ""
        side = "below" if loss < low else "above"
        return (
            f"the validation loss {loss:.3f} after step {step:,} is {side} the range {low:.3f} to "
            f"{high:.3f}, which is expected for 99% of the runs of {self.recipe} (estimated from "
            f"{self.seeds} runs)"
        )


def comparable(config: RunConfig) -> dict[str, Any]:
    """The settings that two runs must have in common for their losses to be comparable."""
    settings = asdict(config)
    settings.pop("text")
    training = settings["training"].items()
    settings["training"] = {k: v for k, v in training if k not in _IRRELEVANT}
    return settings


def bands(config: RunConfig) -> Bands | None:
    """The bands of the recipe that this run follows; None if there are none."""
    folder = resources.files("headway.training") / "bands"
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name.endswith(".json"):
            recorded = Bands(**json.loads(file.read_text(encoding="utf-8")))
            if recorded.config == comparable(config):
                return recorded
    return None
