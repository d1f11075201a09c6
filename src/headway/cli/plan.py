"""`headway plan`: the memory, the time and the limits of a training run, before it is started."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from headway.cli.parameters import Device, Switch
from headway.cli.train import Model, Training
from headway.plan.cards import Cluster, card_named, efficiency_of
from headway.plan.counts import parameters
from headway.plan.estimate import estimate, model_of, work_of
from headway.plan.render import rendered
from headway.training import recipes
from headway.training.settings import TrainingConfig


def plan(
    recipe: str = "gpt2-small",
    /,
    *,
    gpus: int = 1,
    card: str | None = None,
    per_node: int = 8,
    network: float | None = None,
    measure: Switch = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    preset: Literal["gpt2", "modern"] | None = None,
    tokenizer: str | None = None,
    vocabulary: int | None = None,
    model: Model = None,
    training: Training = None,
    device: Device = None,
) -> None:
    """Plan a training run: parameters, memory, time, tokens per second, and what limits it.

    Nothing is trained and no text is read. Settings that are not given come from the recipe.

    Parameters
    ----------
    recipe
        A recipe, as in `headway train --recipe`, or the path of a .toml.
    gpus
        Number of GPUs.
    card
        h100 (the default), h200, b200, a100, a100-40gb, l4, 4090 or h100-500w.
    per_node
        Number of GPUs in a node.
    network
        GB/s of each GPU to other nodes; by default what clusters with the card usually have.
    measure
        Calibrate on this machine in about a minute, instead of the card's usual numbers.
    as_json
        Print JSON, in bytes and seconds.
    preset
        gpt2 or modern, as in `headway train`.
    tokenizer
        bpe, char, byte, or the path of a tokenizer.json, which needs --vocabulary.
    vocabulary
        Number of tokens of the tokenizer.
    device
        Device that --measure uses; by default the fastest of this machine.
    """
    named = {"preset": preset, "tokenizer": tokenizer, "vocabulary": vocabulary}
    given = {k: v for k, v in named.items() if v is not None} | (model or {}) | (training or {})
    if measure and card is not None:
        raise ValueError("--measure uses this machine's device; remove --card")
    if device is not None and not measure:
        raise ValueError("--device is for --measure; for a plan, choose a --card")
    if network is not None and network <= 0:
        raise ValueError(f"network must be above 0 (got {network:g})")
    settings = recipes.override(recipes.read(recipe), given)
    config, is_assumed = model_of(settings)
    options = TrainingConfig(**settings["training"])
    cluster = Cluster(card_named(card or "h100"), gpus, per_node)
    work = work_of(config, options, gpus)
    efficiency = efficiency_of(cluster.card, work.compiled)
    notes = []
    if is_assumed:
        notes = [f"the vocabulary of {config.vocabulary} is assumed; --vocabulary changes it"]
    attention = config.attention
    if attention.normalizer != "softmax" or config.positions.kind in ("alibi", "relative"):
        notes.append(
            "this attention has no FlashAttention: it needs more memory and time than this"
        )
    elif config.dropout:
        notes.append("attention with dropout takes longer than this, in a kernel of its own")
    if measure:
        options, cluster, efficiency = _measured(config, options, cluster, device)
        notes.append("measured on this machine, with one block of the model")
    if network is not None:
        cluster = replace(cluster, card=replace(cluster.card, network=1e9 * network))
    planned = estimate(config, options, cluster, efficiency)
    if as_json:
        json.dump(planned.to_json(), sys.stdout, indent=1)
        print()
    else:
        Console(highlight=False).print(rendered(planned, efficiency, notes))


def _measured(config: Any, options: TrainingConfig, cluster: Cluster, device: str | None) -> Any:
    """Calibrate, with the number format and the compilation that `headway train` chooses here."""
    from headway.plan.measure import measure
    from headway.torch import devices

    chosen = devices.choose(device)
    tokens = options.steps * options.batch * (options.length or config.context)
    options = devices.suited(parameters(config).total, tokens, options, chosen)
    print("measuring one block of the model ...", file=sys.stderr)
    measured = measure(work_of(config, options, cluster.gpus), chosen)
    return options, replace(cluster, card=measured.card), measured.efficiency
