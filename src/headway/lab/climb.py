"""The ladder climbed: the same small GPT, budget and number of parameters, with every rung in the
attention's place."""

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
from headway.lab.experiments import RECIPE, Experiment, Variant
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
LOOKS = 8  # at the held-out text: each takes as long as twenty steps
SEEDS = {"quick": 3, "full": 5}
DROPOUT = 0.1  # from the rung `dropout` on
DROPPED = (
    f"from dropout on, {DROPOUT:.0%} is dropped as in GPT-2: of the weights, and of the embeddings "
    "and what each part adds as well"
)

# The ladder as it is trained, each rung against the one before. `trainable` with the mask is
# `causal`. Rungs that give the result of another with its numbers packed otherwise are not trained
# again: `repacked` shows them.
RUNGS = tuple(name for name, rung in LADDER.items() if not rung.equals and name != "trainable")
# The kernel for those: the ladder's own `tiled` is written to be read.
PACKED: Mapping[str, Any] = {
    name: partial(dispatch.run, kernel="tiled") if name == "tiled" else None
    for name, rung in LADDER.items()
    if rung.equals
}
LAYERS = ((8, 64), (1, 2048))  # batch and tokens of the layer that is timed
LEAK = "trainable, no mask"
APART = (
    "not ranked, for it leaks: without the mask a token sees the one that it should predict; as "
    "soon as training finds that, the loss is too good to be true, and what it writes is rubbish, "
    "for then nothing stands there"
)


def experiment(text: str, size: str) -> Experiment:
    """The climb on a text. size: quick or full."""
    base = {**recipes.read(RECIPE), "text": text}
    base["training"] |= {"steps": STEPS[size], "evaluate_every": STEPS[size] // LOOKS}
    variants = []
    for place, rung in enumerate(RUNGS):
        dropout = DROPOUT if place >= RUNGS.index("dropout") else 0.0
        variants.append(
            Variant(
                rung,
                _settings(base, rung, dropout=dropout),
                against=RUNGS[place - 1] if place else None,
            )
        )
    leak = _settings(base, "trainable", attention={"causal": False})
    variants.append(Variant(LEAK, leak, apart=APART))
    return Experiment(NAME, QUESTION, variants, SEEDS[size], size)


def _settings(base: Settings, rung: str, **model: Any) -> Settings:
    """With an MLP as wide as it takes for the parameters to be those of multi-head attention."""
    config = preset("gpt2", base["model"], vocabulary=1)
    sizes = RungConfig(config.width, config.width, config.attention.heads)

    def own(name: str) -> int:
        return sum(prod(shape) for shape in rung_named(name).shapes(sizes).values())

    unit = 2 * config.width + 1  # parameters of one unit inside the MLP
    inside = config.mlp_width + round((own("multihead") - own(rung)) / unit)
    return overlaid(base, {"rung": rung, "model": {**model, "mlp": {"width": inside}}})


def repacked(experiment: Experiment, folder: Path) -> Iterator[str]:
    """What else is to be said: the trained multi-head attention as `fused` and as `tiled`, how
    equal and how fast.

    A sentence each; none while the run of the first seed has not ended.
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
                f"{rung}: multihead's numbers re-packed give the same logits within "
                f"{difference:.1e} (the largest is {logits.abs().max():.1f})"
            )
    for batch, length in LAYERS:
        times = _times(model, batch, length)
        said = ", ".join(f"{times[rung] / times['multihead']:.2f} for {rung}" for rung in PACKED)
        yield (
            f"one attention layer on this CPU, {batch} × {length:,} tokens, forward and backward: "
            f"of multihead's time {said}"
        )


def _packed(model: GPT, rung: str) -> GPT:
    """The same model with the rung's layout of the same numbers."""
    from headway.torch import gpt, weights

    arrays = weights.to_arrays(model)
    own = re.compile(r"(.*)\.W_(query|key|value|output)$")
    prefixes = dict.fromkeys(found[1] for found in map(own.match, arrays) if found)
    packed = {name: array for name, array in arrays.items() if not own.match(name)}
    for prefix in prefixes:
        names = ("W_query", "W_key", "W_value", "W_output")
        one = fused.from_multihead({name: arrays[f"{prefix}.{name}"] for name in names})
        packed |= {f"{prefix}.{name}": array.astype(np.float32) for name, array in one.items()}
    other = gpt.GPT(model.config, gpt.of_rung(rung_named(rung), PACKED[rung])).eval()
    weights.fill(other, packed)
    return other


def _times(model: GPT, batch: int, length: int) -> dict[str, float]:
    """Seconds of one layer of each, forward and backward, in turns."""
    import torch

    from headway.bench import measure

    measure.settle()
    x = torch.randn(batch, length, model.config.width, requires_grad=True)
    models = {"multihead": model, **{rung: _packed(model, rung) for rung in PACKED}}

    def side(layer: Any) -> measure.Side:
        return measure.Side(lambda: layer(x).sum().backward())

    sides = {name: side(each.blocks[0].attention) for name, each in models.items()}
    found = measure.in_turns(sides, seconds=1.0)
    return {name: median(spent) for name, spent in found.items()}
