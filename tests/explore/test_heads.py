"""What each head does, against explicit loops; the logit lens, against the logits."""

import json
from dataclasses import replace
from math import log

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, config, lively
from headway.engines import engine_named
from headway.explore import lens as lens_module
from headway.explore import trace_file
from headway.explore.export import reduced
from headway.explore.heads import statistics
from headway.explore.lens import lens
from headway.explore.notebook import _RecordedTrace
from headway.explore.tracers import ModelTracer, TraceRequest, never_stop
from headway.hf.stored import StoredModel
from headway.models.gpt import NormConfig

NAMES = ["previous", "itself", "first", "induction", "entropy"]


def by_loops(weights, rows, ids):
    """The numbers of one head (rows, keys)."""
    shares = {name: [] for name in NAMES}
    for row, query in zip(weights, rows, strict=True):
        if query > 0:
            shares["previous"].append(row[query - 1])
        shares["itself"].append(row[query])
        shares["first"].append(row[0])
        earlier = [key for key in range(query) if ids[key] == ids[query]]
        if earlier:
            shares["induction"].append(row[earlier[-1] + 1])
        shares["entropy"].append(-sum(w * log(w) for w in row if w > 0))
    return {name: sum(values) / len(values) for name, values in shares.items()}


@pytest.mark.parametrize("rows", [range(7), range(0, 7, 3)])
def test_the_numbers_of_every_head_of_every_text(rows):
    rows = np.array(rows)
    weights = np.random.default_rng(0).dirichlet(np.full(7, 0.5), size=(2, 3, len(rows)))
    weights[0, 1, :, 4] = 0  # zeros do not make the entropy NaN
    ids = [5, 8, 5, 5, 9, 8, 5]
    result = statistics(weights, rows, ids)
    assert result["queries"] == len(rows)
    assert result["repeated"] == sum(ids[row] in ids[:row] for row in rows)
    heads = [by_loops(head, rows, ids) for text in weights for head in text]
    assert [list(head) for head in result["heads"]] == [NAMES] * 6
    for head, expected in zip(result["heads"], heads, strict=True):
        assert head == pytest.approx(expected, rel=1e-12)


def test_heads_that_do_one_thing():
    ids = [1, 2, 3, 4, 1, 2, 3, 4]
    size = len(ids)
    previous = np.eye(size)[[0, *range(size - 1)]]
    induction = np.eye(size)[[0, 1, 2, 3, 1, 2, 3, 4]]
    uniform = np.tril(np.ones((size, size))) / np.arange(1, size + 1)[:, None]
    result = statistics(np.stack([previous, induction, uniform]), np.arange(size), ids)["heads"]
    assert result[0]["previous"] == 1
    assert result[0]["entropy"] == 0
    assert result[1]["induction"] == 1
    assert result[1]["previous"] == 0
    assert result[2]["itself"] == result[2]["first"]
    assert result[2]["entropy"] == pytest.approx(np.mean([log(n) for n in range(1, size + 1)]))


def test_what_has_no_value_is_null():
    one = statistics(np.ones((1, 1)), np.array([0]), [3])
    assert one["heads"] == [{**dict.fromkeys(NAMES), "itself": 1, "first": 1, "entropy": 0}]
    (unknown,) = statistics(np.eye(4), np.arange(4))["heads"]
    assert unknown["induction"] is None
    (broken,) = statistics(np.full((4, 4), np.nan), np.arange(4), [1, 1, 1, 1])["heads"]
    assert broken == dict.fromkeys(NAMES)
    json.dumps([one, broken], allow_nan=False)


@pytest.mark.parametrize("size", [48, 100])
@pytest.mark.parametrize("only", [("queries", "keys"), ("queries", "keys", "weights")])
def test_a_long_text_is_sampled_like_the_overview(size, only):
    queries = torch.randn(1, 2, size, 4, generator=torch.Generator().manual_seed(0))
    with headway.trace(only=only) as steps:
        headway.attend(queries, queries, queries, causal=True)
    ids = np.random.default_rng(0).integers(0, 9, size)
    _, manifest = trace_file.describe(steps, {"": ids})
    rows = np.arange(0, size, 1 if size == 48 else 3)
    weights = headway.attention_weights(queries, queries, causal=True).numpy()[..., rows, :]
    expected = statistics(weights, rows, ids)
    result = manifest["heads"][""]
    assert result["queries"] == expected["queries"] == len(rows)
    for head, one in zip(result["heads"], expected["heads"], strict=True):
        assert head == pytest.approx(one, rel=1e-4)


def test_a_model_has_the_numbers_of_the_weights_in_its_trace(run):
    tensors, manifest = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest("to be or to"))
    ids = [token["id"] for token in manifest["tokens"]]
    assert list(manifest["heads"]) == ["blocks.0.attention", "blocks.1.attention"]
    for name, result in manifest["heads"].items():
        expected = statistics(tensors[f"{name}.weights"], np.arange(len(ids)), ids)
        assert result == expected
        assert result["repeated"] > 0


def steps_of(*names, queries=5, keys=5):
    with headway.trace() as steps:
        for name in names:
            with headway.scope(name):
                size = {"queries": queries, "keys": keys}
                parts = [torch.randn(2, size[role], 4) for role in ("queries", "keys", "keys")]
                headway.attend(*parts)
    return steps


def test_only_self_attentions_have_numbers():
    of_one = _RecordedTrace(steps_of("attention"), None).trace(TraceRequest(""))[1]["heads"]
    assert [head["induction"] for head in of_one["attention"]["heads"]] == [None, None]
    assert trace_file.describe(steps_of("a", queries=3))[1]["heads"] == {}
    names = ("encoder.0.self_attention", "decoder.0.self_attention", "decoder.0.cross_attention")
    ids = {"encoder.": [1, 1, 1, 1, 1], "decoder.": [1, 2, 3, 4, 4]}
    heads = trace_file.describe(steps_of(*names), ids)[1]["heads"]
    assert {name: one["repeated"] for name, one in heads.items()} == {names[0]: 4, names[1]: 1}
    assert trace_file.describe(steps_of("decoder.attention"))[1]["heads"] == {}  # Luong's


BERT = {"output": "transform", "segments": 2}
KINDS = {
    "gpt2": config(),
    "modern, untied": config(tied=False, **MODERN),
    "bert": replace(config(causal=False, **BERT), norm=NormConfig(placement="after")),
}


@pytest.fixture(params=["torch", "jax"])
def engine(request):
    return engine_named(request.param)


def assembled(engine, of):
    array = torch.tensor if engine.FRAMEWORK == "pt" else jnp.asarray
    named = lively(of).items()
    return engine.assemble(of, [(n, array(p.astype(np.float32))) for n, p in named], "cpu")


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def lens_of(engine, of, size=9):
    model = assembled(engine, of)
    tokens = np.arange(size) % 11
    tensors, _ = trace_file.record(lambda part: engine.logits(model, tokens[None, part]), tokens)
    return tensors, lens(tensors, of, lambda x: engine.readout(model, x), never_stop)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_of_the_lens_is_the_output(engine, kind):
    tensors, result = lens_of(engine, KINDS[kind])
    assert result["lens.tokens"].shape == result["lens.probabilities"].shape == (3, 9, 5)
    assert result["lens.tokens"].dtype == np.int32
    shares = softmax(tensors["logits"][0])
    order = np.argsort(-shares, axis=-1)[:, :5]
    assert np.array_equal(result["lens.tokens"][-1], order)
    expected = np.take_along_axis(shares, order, -1)
    np.testing.assert_allclose(result["lens.probabilities"][-1], expected, rtol=2e-5)


def test_the_lens_reads_every_stream(engine):
    """The embedding and the first layer, with norm and output layer written out."""
    of = KINDS["gpt2"]
    tensors, result = lens_of(engine, of)
    parameters = lively(of)
    for row, name in enumerate(("embedded", "blocks.0.after_mlp")):
        x = tensors[name][0].astype(np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + of.norm.eps)
        x = x * parameters["final_norm.weight"] + parameters["final_norm.bias"]
        shares = softmax(x @ parameters["embedding.weight"].T)
        order = np.argsort(-shares, axis=-1)[:, :5]
        assert np.array_equal(result["lens.tokens"][row], order)
        expected = np.take_along_axis(shares, order, -1)
        np.testing.assert_allclose(result["lens.probabilities"][row], expected, rtol=1e-4)


def test_a_lens_that_costs_too_much_reads_the_last_positions(engine, monkeypatch):
    _, complete = lens_of(engine, KINDS["gpt2"])
    monkeypatch.setattr(lens_module, "MOST", 4 * 3 * 24 * 11 + 1)
    _, result = lens_of(engine, KINDS["gpt2"])
    assert np.array_equal(result["lens.tokens"], complete["lens.tokens"][:, -4:])


def test_a_small_vocabulary_has_fewer_candidates(engine):
    _, result = lens_of(engine, config(vocabulary=3), size=3)
    assert result["lens.tokens"].shape == (3, 3, 3)
    np.testing.assert_allclose(result["lens.probabilities"].sum(-1), 1, rtol=1e-6)


def test_a_trace_and_its_file_have_the_lens(run, monkeypatch):
    tensors, manifest = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest("it was"))
    assert tensors["lens.tokens"].shape == (3, 6, 5)
    monkeypatch.setattr("headway.explore.export.AIM", 0)
    kept, _ = reduced(tensors, manifest)
    assert "lens.probabilities" in kept
    assert "embedded" not in kept


def test_the_lens_stops_between_layers(engine):
    calls = []

    def stop():
        calls.append(1)
        raise TimeoutError

    of = KINDS["gpt2"]
    model = assembled(engine, of)
    tensors = {"embedded": np.zeros((1, 2, 24), np.float32), "logits": np.zeros((1, 2, 11))}
    with pytest.raises(TimeoutError):
        lens(tensors, of, lambda x: engine.readout(model, x), stop)
    assert len(calls) == 1
