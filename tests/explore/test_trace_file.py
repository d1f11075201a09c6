"""The trace file holds the engine's own numbers, and all that it takes to recompute the weights."""

from functools import partial

import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, attending, gpt_config
from headway.attention.masks import Mask
from headway.attention.normalizers import sparsemax
from headway.attention.spec import Spec
from headway.data.tokenizers import Tokenizer
from headway.explore import trace_file
from headway.ladder.rungs import LADDER
from headway.torch import GPT
from headway.torch.gpt import multi_head, of_rung

TOKENS = torch.arange(9)[None]


def recompute(layer, tensors, facts):
    """What a page does: from queries and keys to weights, by the manifest alone."""
    queries, keys = (tensors[f"{layer}.{name}"].astype(float) for name in ("queries", "keys"))
    keys = np.repeat(keys, facts["heads"] // facts["kv_heads"], axis=-3)
    scores = queries @ keys.mT * facts["scale"]
    if facts["softcap"]:
        scores = facts["softcap"] * np.tanh(scores / facts["softcap"])
    if facts["bias"]:
        scores = scores + tensors[facts["bias"]]
    query = facts["offset"] + np.arange(scores.shape[-2])[:, None]
    key = np.arange(scores.shape[-1])
    allowed = np.ones(scores.shape, dtype=bool)
    if facts["allowed"]:
        allowed = np.broadcast_to(tensors[facts["allowed"]], scores.shape)
    else:
        least, most = facts["mask"] or (None, None)
        allowed = allowed & (query - key >= (-np.inf if least is None else least))
        allowed = allowed & (query - key <= (np.inf if most is None else most))
    assert facts["normalizer"] == "softmax"
    scores = np.where(allowed, scores, -np.inf)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def model(attention=multi_head, **choices):
    torch.manual_seed(0)
    made = GPT(gpt_config(11, 12, 24, 2, 4, **choices), attention).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.4)
    return made


def recorded(of, most=trace_file.MATRICES):
    with torch.no_grad():
        tensors, manifest = trace_file.record(
            lambda part: of(TOKENS[:, part]), TOKENS[0].numpy(), most=most
        )
    return tensors, manifest["attentions"]


def with_options(**options):
    return lambda config: multi_head(config, attending(**options))


MODELS = {
    "gpt2": lambda: model(),
    "modern, grouped": lambda: model(kv_heads=2, **MODERN),
    "plain kernel": lambda: model(with_options(kernel="plain")),
    "window, softcap, scale": lambda: model(with_options(window=3, softcap=4.0, scale=0.3)),
    "bias": lambda: model(
        with_options(bias=torch.linspace(-2, 2, 12 * 12).reshape(12, 12)[:9, :9])
    ),
    "own mask": lambda: partial(
        model(), spec=Spec(Mask(lambda batch, head, query, key: key % 3 != 1))
    ),
    **{
        name: partial(lambda rung: model(of_rung(rung)), rung)
        for name, rung in LADDER.items()
        if name in ("causal", "multihead", "fused", "tiled", "stacked")
    },
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_weights_can_be_recomputed_from_what_is_written(tmp_path, make):
    of = make()
    if make is MODELS["bias"]:  # its bias fits nine tokens, not the first alone
        with torch.no_grad(), headway.trace() as steps:
            of(TOKENS)
        facts = trace_file._attention(
            "blocks.0.attention.", steps.notes["blocks.0.attention.spec"], steps, tensors := {}
        )
        tensors |= {name: np.asarray(value) for name, value in steps.items()}
        attentions = {"blocks.0.attention": facts}
    else:
        tensors, attentions = recorded(of)
    trace_file.save(tmp_path / "t.safetensors", tensors, {"attentions": attentions})
    tensors, manifest = trace_file.load(tmp_path / "t.safetensors")
    assert manifest["attentions"]
    for layer, facts in manifest["attentions"].items():
        result = recompute(layer, tensors, facts)
        context = result @ np.repeat(
            tensors[f"{layer}.values"].astype(float), facts["heads"] // facts["kv_heads"], axis=-3
        )
        np.testing.assert_allclose(context, tensors[f"{layer}.context"], rtol=1e-5, atol=1e-5)
        if f"{layer}.weights" in tensors:
            np.testing.assert_allclose(result, tensors[f"{layer}.weights"], atol=1e-6)


def test_the_numbers_are_those_of_the_model():
    of = model()
    tensors, _ = recorded(of)
    with torch.no_grad():
        assert np.allclose(tensors["logits"], of(TOKENS).numpy(), atol=1e-6)
    with torch.no_grad(), headway.trace() as steps:
        of(TOKENS)
    assert list(tensors) == list(steps)
    assert all(np.array_equal(tensors[name], steps[name].numpy()) for name in steps)


def test_matrices_too_large_are_left_out_where_they_can_be_recomputed():
    complete, facts = recorded(model())
    lean, lean_facts = recorded(model(), most=1000)
    left_out = {name.rpartition(".")[2] for name in complete.keys() - lean.keys()}
    assert left_out == {"scores", "scaled", "masked", "weights"}
    assert lean_facts == facts
    assert all(np.allclose(lean[name], complete[name], rtol=1e-4, atol=1e-5) for name in lean)
    fixed, _ = recorded(model(of_rung(LADDER["fixed"])), most=1000)
    assert "blocks.0.attention.weights" in fixed  # nothing else says what they are


def test_the_normalizer_is_named():
    _, attentions = recorded(model(with_options(normalizer=sparsemax)))
    assert {facts["normalizer"] for facts in attentions.values()} == {"sparsemax"}
    assert not any(facts["recomputable"] for facts in attentions.values())
    lean, _ = recorded(model(with_options(normalizer=sparsemax)), most=0)
    assert "blocks.0.attention.weights" in lean


def test_tokens_are_drawn():
    tokenizer = Tokenizer.utf8_bytes()
    result = trace_file.token_records(tokenizer.encode("a \n\té"), tokenizer)
    assert [token["display"] for token in result] == ["a", "·", "⏎", "⇥", r"\xc3", r"\xa9"]
    assert b"".join(bytes.fromhex(token["bytes"]) for token in result).decode() == "a \n\té"
    assert [token["id"] for token in result] == [97, 32, 10, 9, 0xC3, 0xA9]


def test_equal_content_is_equal_bytes_and_damage_is_named(tmp_path):
    tensors, attentions = recorded(model())
    for name in ("one", "other"):
        trace_file.save(tmp_path / name, tensors, {"attentions": attentions})
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "other").read_bytes()
    (tmp_path / "one").write_bytes(content[:100])
    with pytest.raises(ValueError, match="one is not a trace file"):
        trace_file.load(tmp_path / "one")
