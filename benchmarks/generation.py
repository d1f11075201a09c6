"""Generating text: Headway, `transformers`, JAX and the memory's speed, on a CPU.

    python -m benchmarks.generation --output docs/bench/generation.json

Batch 1, float32, top-k 200, from one token, with random weights. All sides of a model are processes
that run in turns, and generate the same number of tokens. "memory" reads as many float32 numbers as
the model has parameters, once per token: no program that reads all weights is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks import report
from benchmarks.sides import Side, in_turns, machine

from headway.attention.kernels.tuning import version
from headway.models.gpt import GPTConfig, preset
from headway.torch import GPT

TOP_K, PROMPT = 200, [1]
Work = Callable[[], Any]


class Model(NamedTuple):
    layers: int
    heads: int
    width: int
    vocabulary: int
    context: int
    tokens: int  # to generate; 200 is the default of `headway generate`

    @property
    def config(self) -> GPTConfig:
        sizes = {name: getattr(self, name) for name in ("layers", "width", "vocabulary", "context")}
        return preset("gpt2", sizes, attention={"heads": self.heads})


def eager(model: Model, compiles: bool = False) -> Work:
    from headway.torch import generate

    generate.COMPILES_FROM, generate.LOADS_FROM = (0, 0) if compiles else (10**9, 10**9)
    return _ours(generate.generate, GPT(model.config), model)


def compiled(model: Model) -> Work:
    """With the code that a longer text would compile; compiling is not measured."""
    return eager(model, compiles=True)


def jax(model: Model) -> Work:
    from headway.jax.generate import generate
    from headway.jax.weights import build
    from headway.training.runs import RunConfig
    from headway.training.settings import TrainingConfig

    config = RunConfig("next-token", "", "", "", "", None, model.config, TrainingConfig())
    return _ours(generate, build(config), model)


def _ours(generate: Callable[..., Any], gpt: Any, model: Model) -> Work:
    return lambda: [*generate(gpt, [np.array(PROMPT)], tokens=model.tokens, top_k=TOP_K)]


def transformers(model: Model) -> Work:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=model.vocabulary,
        n_positions=model.context,
        n_embd=model.width,
        n_layer=model.layers,
        n_head=model.heads,
        bos_token_id=0,
        eos_token_id=None,
    )
    gpt, inputs = GPT2LMHeadModel(config).eval(), torch.tensor([PROMPT])
    count = {"max_new_tokens": model.tokens, "min_new_tokens": model.tokens, "pad_token_id": 0}
    return lambda: gpt.generate(inputs, do_sample=True, top_k=TOP_K, **count)


def memory(model: Model) -> Work:
    parameters = sum(parameter.numel() for parameter in GPT(model.config).parameters())
    weights = torch.randn(parameters)  # their sum takes less time than their product with a vector
    return lambda: [weights.sum() for _ in range(model.tokens)] and None


SMALL = Model(layers=4, heads=4, width=128, vocabulary=65, context=256, tokens=200)
GPT2 = Model(layers=12, heads=12, width=768, vocabulary=50_257, context=1024, tokens=200)
BASELINE, BOUND = "transformers, eager", "memory"
SIDES: dict[str, tuple[Model, dict[str, Callable[[Model], Work]]]] = {
    "4 layers of width 128, 65 tokens": (
        SMALL,
        {
            "Headway, eager": eager,
            "Headway, compiled": compiled,
            "Headway, JAX": jax,
            BASELINE: transformers,
        },
    ),
    "GPT-2's size": (
        GPT2,
        {
            "Headway, eager": eager,
            "Headway, compiled": compiled,
            BASELINE: transformers,
            BOUND: memory,
        },
    ),
}


def main() -> None:
    options = report.options(__doc__, rounds=15).parse_args()
    rows = []
    for name, (model, makers) in SIDES.items():
        sides = {side: Side(make, model) for side, make in makers.items()}
        runs = {side: process.seconds for side, process in sides.items()}
        in_turns(runs, 2)
        spent = in_turns(runs, options.rounds)
        for process in sides.values():
            process.close()
        for side, times in spent.items():
            speeds = [model.tokens / seconds for seconds in times]
            row = {"model": name, "what": side, "tokens/s": report.middle(speeds)}
            row["quartiles, tokens/s"] = report.quartiles(speeds)
            row["times as fast as transformers"] = report.ratio(spent[BASELINE], times)
            if BOUND in spent:
                row["share of the memory's speed"] = report.ratio(spent[BOUND], times)
            rows.append(row)
    about = {**machine(), "transformers": version("transformers")}
    report.save({"machine": about, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
