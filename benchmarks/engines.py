"""The two engines on the same training step and the same writing, on a CPU, in turns.

    python -m benchmarks.engines --output docs/bench/engines.json

A GPT-2-like model of 6 layers, 6 heads, width 384, 65 different tokens; batch 16, 256 tokens,
float32, AdamW. Both engines begin with the same weights, which is checked by the first losses.
Beside them run the step's matrix products alone, with each library: JAX's step is to take at most
1.1 times what these account for. Ratios are medians of the ratios of each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from benchmarks import report
from benchmarks.sides import Side, in_turns, machine

from headway.engines import Name, engine_named
from headway.models.gpt import preset
from headway.training.runs import RunConfig
from headway.training.settings import TrainingConfig

SIZES = {"vocabulary": 65, "context": 256, "width": 384, "layers": 6}
CONFIG = preset("gpt2", SIZES, attention={"heads": 6})
TRAINING = TrainingConfig(
    steps=2000,
    batch=16,
    evaluate_every=10**6,
    evaluation_windows=1,
    precision="float32",
    compile=False,
)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocabulary, 100_000)
WRITTEN, TARGET = 200, 1.1
Product = tuple[str, tuple[int, ...], tuple[int, ...], int]


def step(name: Name) -> Callable[[], float]:
    """A training step, which gives its loss."""
    config = RunConfig("next-token", "", "", "", "", None, CONFIG, TRAINING)
    trainer = engine_named(name).trainer(config, (TOKENS[:-1000], TOKENS[-1000:]))
    return lambda: trainer.advance().loss


def writing(name: Name) -> Callable[[], list[int]]:
    """Writing on, from a prompt of one token, by a cache."""
    config = RunConfig("next-token", "", "", "", "", None, CONFIG, TRAINING)
    own = engine_named(name)
    model = own.trainer(config, (TOKENS[:-1000], TOKENS[-1000:])).model
    return lambda: [t for (t,) in own.generate(model, [TOKENS[:1]], tokens=WRITTEN)]


def products() -> Iterator[Product]:
    """The matrix products of a step, forward and backward: as einsum, shapes, how many of each."""
    rows, width, layers = TRAINING.batch * CONFIG.context, CONFIG.width, CONFIG.layers
    linear = [(width, out, layers) for out in (3 * width, width, CONFIG.mlp_width)]
    linear += [(CONFIG.mlp_width, width, layers), (width, CONFIG.vocabulary, 1)]
    for d_in, d_out, count in linear:
        yield "nd,de->ne", (rows, d_in), (d_in, d_out), count  # x W
        yield "ne,de->nd", (rows, d_out), (d_in, d_out), count  # dy W^T
        yield "nd,ne->de", (rows, d_in), (rows, d_out), count  # x^T dy
    heads = (TRAINING.batch * CONFIG.attention.heads, CONFIG.context)
    features, square = (*heads, CONFIG.d_k), (*heads, CONFIG.context)
    yield "hqd,hkd->hqk", features, features, 2 * layers  # scores; the weights' gradients
    yield "hqk,hkd->hqd", square, features, 2 * layers  # context; the queries' gradients
    yield "hqk,hqd->hkd", square, features, 2 * layers  # the keys' and the values' gradients


def products_of(name: Name) -> Callable[[], None]:
    """All products of a step, one after another."""
    each = [_product(name, *product) for product in products()]
    return lambda: [product() for product in each] and None


def _product(
    name: Name, equation: str, one: tuple[int, ...], other: tuple[int, ...], count: int
) -> Callable[[], None]:
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in (one, other))
    if name == "torch":
        import torch

        here, there = torch.from_numpy(a), torch.from_numpy(b)
        return lambda: [torch.einsum(equation, here, there) for _ in range(count)] and None
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(a), jnp.asarray(b)
    multiply = jax.jit(lambda x, y: jnp.einsum(equation, x, y))
    return lambda: [multiply(x, y).block_until_ready() for _ in range(count)] and None


SIDES: dict[str, tuple[Any, ...]] = {
    "step, PyTorch": (step, "torch"),
    "step, JAX": (step, "jax"),
    "products, PyTorch": (products_of, "torch"),
    "products, JAX": (products_of, "jax"),
    "writing, PyTorch": (writing, "torch"),
    "writing, JAX": (writing, "jax"),
}


def tables(results: report.Report) -> str:
    """Two tables: the times, and the ratios."""
    rows = [
        {
            "what": name,
            "ms": milliseconds,
            "quartiles, ms": results["spread"][name],
            "first call, s": results["first call, seconds"][name],
        }
        for name, milliseconds in results["milliseconds"].items()
    ]
    ratios = dict(results["JAX's time as a share of PyTorch's"])
    ratios["step, beyond the products"] = results["of the step, beyond the products"]
    shares = [{"what": name, "JAX's time / PyTorch's": share} for name, share in ratios.items()]
    both = f"{report.tables({**results, 'rows': rows})}\n\n{report.table(shares)}"
    return f"{both}\n\nThe target of the last row is {results['target']}."


def main() -> None:
    options = report.options(__doc__, rounds=15).parse_args()
    sides = {name: Side(*made) for name, made in SIDES.items()}
    first = {name: side.run() for name, side in sides.items()}
    losses = [first[name][1] for name in sides if name.startswith("step")]
    assert max(losses) - min(losses) < 1e-4, f"these are not the same model: {losses}"
    runs = {name: side.seconds for name, side in sides.items()}
    in_turns(runs, 1)
    spent = in_turns(runs, options.rounds)
    milliseconds = {name: [1000 * s for s in seconds] for name, seconds in spent.items()}
    ratios = {
        what: report.ratio(spent[f"{what}, JAX"], spent[f"{what}, PyTorch"])
        for what in ("step", "products", "writing")
    }
    share = report.digits(ratios["step"] / ratios["products"])
    results = {
        "machine": machine(),
        "milliseconds": {name: report.middle(times) for name, times in milliseconds.items()},
        "spread": {name: report.quartiles(times) for name, times in milliseconds.items()},
        "first call, seconds": {name: round(seconds, 1) for name, (seconds, _) in first.items()},
        "JAX's time as a share of PyTorch's": ratios,
        "of the step, beyond the products": share,
        "target": f"at most {TARGET}: {'reached' if share <= TARGET else 'missed'}",
    }
    report.save(results, options.output)


if __name__ == "__main__":
    main()
