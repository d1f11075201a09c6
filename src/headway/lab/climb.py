"""Train the same small GPT with each rung of the ladder as its attention.

All have the same number of steps and of parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.attention import dispatch
from headway.lab import work
from headway.lab.experiments import RECIPE, SEEDS, Experiment, Variant
from headway.ladder import fused
from headway.ladder.rung import RungConfig
from headway.ladder.rungs import LADDER, rung_named
from headway.models.gpt import overlaid, preset
from headway.training import recipes
from headway.training.recipes import Settings

if TYPE_CHECKING:
    from headway.torch.gpt import GPT

NAME = "climb"
QUESTION = "What does each rung of the ladder buy?"
STEPS = {"quick": 1200, "full": 6000}
LOOKS = 8  # evaluations; each takes as long as twenty steps
DROPOUT = 0.1  # from the rung `dropout` on
DROPPED = (
    f"from the rung dropout on, a dropout of {DROPOUT:.0%} applies as in GPT-2: to the attention "
    "weights, the embeddings and the updates of each layer"
)

# The rungs that are trained, each compared with the previous one. `trainable` with a mask is
# `causal`. Rungs that equal another one, with the same numbers in other arrays, are not trained
# again; see `repacked`.
RUNGS = tuple(name for name, rung in LADDER.items() if not rung.equals and name != "trainable")
# Their kernels: the rung `tiled` itself is slow.
PACKED: Mapping[str, Any] = {
    name: partial(dispatch.run, kernel="tiled") if name == "tiled" else None
    for name, rung in LADDER.items()
    if rung.equals
}
LAYERS = ((8, 64), (1, 2048))  # batch and tokens of the layer that is timed
LEAK = "trainable, no mask"
APART = (
    "not ranked, because it leaks: without the mask a token attends to the token that it should "
    "predict; when training finds this, the loss becomes too low, and generated text is nonsense, "
    "because nothing is there during generation"
)


def experiment(text: str, size: str) -> Experiment:
    """Return the experiment on a text. size: quick or full."""
    base = {**recipes.read(RECIPE), "text": text}
    base["training"] |= {"steps": STEPS[size], "evaluate_every": STEPS[size] // LOOKS}
    variants = []
    for index, rung in enumerate(RUNGS):
        dropout = DROPOUT if index >= RUNGS.index("dropout") else 0.0
        before = RUNGS[index - 1] if index else None
        variants.append(Variant(rung, _settings(base, rung, dropout=dropout), against=before))
    leak = _settings(base, "trainable", attention={"causal": False})
    variants.append(Variant(LEAK, leak, apart=APART))
    return Experiment(NAME, QUESTION, variants, SEEDS[size], size)


def _settings(base: Settings, rung: str, **model: Any) -> Settings:
    """Set the MLP's width so that the number of parameters is that with multi-head attention."""
    config = preset("gpt2", base["model"], vocabulary=1)
    sizes = RungConfig(config.width, config.width, config.attention.heads)

    def parameters(name: str) -> int:
        return sum(prod(shape) for shape in rung_named(name).shapes(sizes).values())

    unit = 2 * config.width + 1  # parameters of one unit inside the MLP
    inside = config.mlp_width + round((parameters("multihead") - parameters(rung)) / unit)
    return overlaid(base, {"rung": rung, "model": {**model, "mlp": {"width": inside}}})


def repacked(experiment: Experiment, folder: Path) -> Iterator[str]:
    """Yield sentences on dropout, and on `fused` and `tiled` with the numbers of the trained
    multi-head attention: equality and speed, if the run of the first seed has ended.
    """
    yield DROPPED
    job = next(job for job in experiment.jobs if job.variant == "multihead")
    if not (folder / job.folder / work.RESULT).is_file():
        return
    import torch

    from headway.torch import weights
    from headway.training.runs import Run

    model = weights.load(Run(folder / job.folder)).eval()
    tokens = torch.arange(4 * model.config.context).reshape(4, -1) % model.config.vocabulary
    with torch.no_grad():
        logits = model(tokens)
        for rung in PACKED:
            difference = (_packed(model, rung)(tokens) - logits).abs().max()
            yield (
                f"{rung}: the parameters of multihead give the same logits within {difference:.1e} "
                f"(the largest logit is {logits.abs().max():.1f})"
            )
    for batch, length in LAYERS:
        times = _times(model, batch, length)
        ratios = ", ".join(
            f"{rung} takes {times[rung] / times['multihead']:.2f} times as long as multihead"
            for rung in PACKED
        )
        yield (
            f"one attention layer on this CPU, {batch} × {length:,} tokens, forward and backward: "
            f"{ratios}"
        )


def _packed(model: GPT, rung: str) -> GPT:
    """Return the same model with the parameters in the arrays of the rung."""
    from headway.torch import gpt, weights

    arrays = weights.to_arrays(model)
    parameter = re.compile(r"(.*)\.W_(query|key|value|output)$")
    prefixes = dict.fromkeys(match[1] for match in map(parameter.match, arrays) if match)
    packed = {name: array for name, array in arrays.items() if not parameter.match(name)}
    for prefix in prefixes:
        names = ("W_query", "W_key", "W_value", "W_output")
        one = fused.from_multihead({name: arrays[f"{prefix}.{name}"] for name in names})
        packed |= {f"{prefix}.{name}": array.astype(np.float32) for name, array in one.items()}
    other = gpt.GPT(model.config, gpt.of_rung(rung_named(rung), PACKED[rung])).eval()
    weights.fill(other, packed)
    return other


def _times(model: GPT, batch: int, length: int) -> dict[str, float]:
    """Return the seconds of one layer of each, forward and backward, measured alternately."""
    import torch

    from headway.bench import measure

    measure.settle()
    x = torch.randn(batch, length, model.config.width, requires_grad=True)
    models = {"multihead": model, **{rung: _packed(model, rung) for rung in PACKED}}

    def side(layer: Any) -> measure.Workload:
        return measure.Workload(lambda: layer(x).sum().backward())

    sides = {name: side(model.blocks[0].attention) for name, model in models.items()}
    times = measure.alternate(sides, seconds=1.0)
    return {name: median(seconds) for name, seconds in times.items()}
