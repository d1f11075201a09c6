"""The matrices in a trace give the queries, keys, values and outputs of the trace."""

import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, gpt_config
from headway.explore.matrices import of_attentions
from headway.explore.tracers import LadderTracer, TraceRequest
from headway.ladder.rung import SENTENCE
from headway.ladder.rungs import LADDER
from headway.torch import GPT, engine
from headway.torch.gpt import multi_head, of_rung

TOKENS = torch.arange(9)[None]
LEARNED = ("trainable", "causal", "dropout", "stacked", "multihead", "fused", "tiled")


def products(tensors, attention, x):
    """For each role, x @ W + b of the matrices, and the step that it must equal."""
    roles = {"query": "queries", "key": "keys", "value": "values"}
    for role, step in roles.items():
        before = [f"{attention}{kind}_{step}" for kind in ("unnormalized", "unrotated")]
        recorded = next(name for name in (*before, attention + step) if name in tensors)
        bias = tensors.get(f"{attention}b_{role}")
        product = x @ tensors[f"{attention}W_{role}"]
        expected = tensors[recorded]
        result = product if bias is None else product + bias[:, None]
        yield result.reshape(expected.shape), expected
    if f"{attention}W_output" in tensors:
        context = tensors[f"{attention}context"].reshape(
            -1, len(x), tensors[f"{attention}W_output"].shape[-2]
        )
        parts = context @ tensors[f"{attention}W_output"]
        output = parts.sum(0) + tensors.get(f"{attention}b_output", 0)
        yield output.reshape(tensors[f"{attention}output"].shape), tensors[f"{attention}output"]


MODELS = {
    "gpt2": (multi_head, {}),
    "modern, grouped": (multi_head, {"kv_heads": 2, **MODERN}),
    "wide heads": (multi_head, {"d_k": 10}),
    **{rung: (of_rung(LADDER[rung]), {}) for rung in LEARNED},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_products_of_a_model(name):
    attention, choices = MODELS[name]
    torch.manual_seed(0)
    model = GPT(gpt_config(11, 12, 24, 2, 4, **choices), attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
        with headway.trace() as steps:
            model(TOKENS)
    tensors = {step: value.numpy() for step, value in steps.items()}
    tensors |= of_attentions(tensors, engine.parameters(model))
    layers = [step.removesuffix("queries") for step in steps if step.endswith(".queries")]
    assert len(layers) == (8 if name == "stacked" else 2)
    for layer in layers:
        x = tensors[layer.split("attention.")[0] + "attention_norm"][0]
        pairs = list(products(tensors, layer, x))
        assert len(pairs) == 3 + (f"{layer}W_output" in tensors)
        for result, expected in pairs:
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rung", LEARNED)
def test_the_products_of_the_ladder(rung):
    tensors, _ = LadderTracer().trace(TraceRequest(SENTENCE))
    prefix = f"ladder.{rung}."
    layers = [step.removesuffix("queries") for step in tensors if step.endswith(".queries")]
    pairs = [
        pair
        for layer in layers
        if layer.startswith(prefix)
        for pair in products(tensors, layer, tensors["inputs"])
    ]
    assert len(pairs) == {"stacked": 6, "multihead": 4, "fused": 4, "tiled": 4}.get(rung, 3)
    for result, expected in pairs:
        np.testing.assert_allclose(result, expected, atol=1e-12)
