"""What the page is told: the text, the numbers beside the tensors, and what changes did."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import headway
from gpts import gpt_config
from headway.explore import trace_file, tracers
from headway.explore.edits import EDITS, Edit, apply_all
from headway.explore.tracers import LadderTracer, ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from headway.torch.generate import generate
from headway.torch.weights import load
from headway.training.runs import Run

TEXT = "it was the best"
LAYER = "blocks.0.attention"


@pytest.fixture(scope="module")
def tracer(run):
    return ModelTracer(StoredModel.open(run.path))


def test_the_manifest_says_what_ran(tracer, run, monkeypatch):
    logged = [{"validation": 0.5}, {"validation": 0.25}, {"validation": None}]
    monkeypatch.setattr(Run, "logged", lambda self: logged)
    tensors, manifest = tracer.trace(TraceRequest(TEXT, write=6, temperature=1.3, top_k=7, seed=4))
    assert [token["id"] for token in manifest["tokens"]] == list(TEXT.encode())
    start = [np.array(list(TEXT.encode()))]
    draws = {"tokens": 6, "temperature": 1.3, "top_k": 7, "seed": 4}
    written = [token for (token,) in generate(load(run), start, **draws)]
    assert [token["id"] for token in manifest["written"]] == written
    assert manifest["validation"] == 0.25
    assert manifest["step"] == 20
    assert manifest["vocabulary"][32] == "·"
    assert manifest["steps"][0] == ["embedded", [1, 15, 32]]
    names = ("embedded", "blocks.0.after_attention", "blocks.0.after_mlp")
    shares = [
        (np.linalg.norm(new - old, axis=-1) / np.linalg.norm(old, axis=-1)).mean()
        for old, new in pairwise(tensors[name][0] for name in names)
    ]
    np.testing.assert_allclose(manifest["changes"]["blocks.0"], shares, rtol=1e-5)


def test_of_many_logits_the_last_are_kept(tracer, monkeypatch):
    complete = tracer.trace(TraceRequest(TEXT))[0]["logits"]
    monkeypatch.setattr(tracers, "LOGITS", 3 * complete[0, 0].nbytes)
    assert np.array_equal(tracer.trace(TraceRequest(TEXT))[0]["logits"], complete[:, -3:])


def test_a_trace_that_is_no_longer_wanted_stops(tracer):
    asked = []

    def stop():
        asked.append(1)
        if len(asked) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        tracer.trace(TraceRequest(TEXT, write=5), stop)
    assert len(asked) == 3


@pytest.mark.parametrize("only", [("queries", "keys"), ("queries", "keys", "weights")])
def test_an_overview_is_every_nth_row_and_the_largest_of_n_columns(only):
    queries = torch.randn(1, 2, 100, 4, generator=torch.Generator().manual_seed(0))
    with headway.trace(only=only) as steps:
        headway.attend(queries, queries, queries, causal=True)
    tensors, manifest = trace_file.describe(steps)
    assert manifest["overview"] == 48
    weights = headway.attention_weights(queries, queries, causal=True).numpy()
    for row in range(34):
        for column in range(34):
            part = weights[:, :, 3 * row, 3 * column : 3 * column + 3].max(-1)
            np.testing.assert_allclose(tensors["overview"][:, :, row, column], part, atol=1e-6)


def test_what_was_changed_is_not_recomputed(tracer):
    tensors, manifest = tracer.trace(TraceRequest(TEXT, edits=(Edit("uniform", LAYER, 1),)))
    assert not manifest["attentions"][LAYER]["recomputable"]
    assert manifest["attentions"]["blocks.1.attention"]["recomputable"]
    even = np.tril(np.ones((15, 15))) / np.arange(1, 16)[:, None]
    np.testing.assert_allclose(tensors[f"{LAYER}.weights"][0, 1], even, rtol=1e-6)


def test_a_lean_trace_keeps_the_weights_of_changed_layers(tracer, monkeypatch):
    monkeypatch.setitem(trace_file.record.__kwdefaults__, "most", 0)
    tensors, manifest = tracer.trace(TraceRequest(TEXT, edits=(Edit("identity", LAYER),)))
    assert f"{LAYER}.weights" in tensors
    assert f"{LAYER}.scores" not in tensors
    assert "blocks.1.attention.weights" not in tensors
    assert [f"{LAYER}.weights", [1, 4, 15, 15]] in manifest["steps"]
    assert ["blocks.1.attention.weights", [1, 4, 15, 15]] in manifest["steps"]


@pytest.mark.parametrize("what", [name for name, kind in EDITS.items() if kind.heads == "any"])
def test_a_change_is_of_its_head_alone(tracer, what):
    plain, _ = tracer.trace(TraceRequest(TEXT))
    changed, _ = tracer.trace(TraceRequest(TEXT, edits=(Edit(what, LAYER, 2),)))
    before, after = (tensors[f"{LAYER}.context"][0] for tensors in (plain, changed))
    differs = [
        not np.allclose(one, other, atol=1e-6) for one, other in zip(before, after, strict=True)
    ]
    assert differs == [False, False, True, False]
    assert not np.allclose(plain["logits"], changed["logits"], atol=1e-6)


def test_one_head_alone_and_without_the_output_matrix(tracer):
    plain, _ = tracer.trace(TraceRequest(TEXT))
    tensors, _ = tracer.trace(TraceRequest(TEXT, edits=(Edit("alone", LAYER, 2),)))
    context = tensors[f"{LAYER}.context"][0]
    assert np.array_equal(context[2], plain[f"{LAYER}.context"][0, 2])
    assert not context[[0, 1, 3]].any()
    tensors, _ = tracer.trace(TraceRequest(TEXT, edits=(Edit("no output", LAYER),)))
    contexts = plain[f"{LAYER}.context"][0]
    assert np.array_equal(tensors[f"{LAYER}.output"][0], np.concatenate(list(contexts), axis=-1))
    edits = (Edit("no output", LAYER), Edit("off", LAYER, 1))
    tensors, _ = tracer.trace(TraceRequest(TEXT, edits=edits))
    assert not tensors[f"{LAYER}.output"][0, :, 8:16].any()  # head 1 was off before


def test_without_the_mask_a_position_bias_stays(new_run):
    run = new_run(gpt_config(256, 12, 24, 1, 4, positions="alibi"))
    tracer = ModelTracer(StoredModel.open(run.path))
    plain, _ = tracer.trace(TraceRequest("abcabd"))
    tensors, _ = tracer.trace(TraceRequest("abcabd", edits=(Edit("no mask", LAYER),)))
    before, after = (one[f"{LAYER}.masked"] for one in (plain, tensors))
    seen = np.isfinite(before)
    assert np.array_equal(after[seen], before[seen])
    assert np.array_equal(after[~seen], tensors[f"{LAYER}.scaled"][~seen])
    assert not np.array_equal(before[seen], plain[f"{LAYER}.scaled"][seen])


def test_without_rotary_positions(modern):
    edits = (Edit("no rotary", "blocks.1.attention"),)
    of_modern = ModelTracer(StoredModel.open(modern.path))
    plain, _ = of_modern.trace(TraceRequest(TEXT[:9]))
    tensors, _ = of_modern.trace(TraceRequest(TEXT[:9], edits=edits))
    for name in ("queries", "keys"):
        unrotated = tensors[f"blocks.1.attention.unrotated_{name}"]
        assert np.array_equal(tensors[f"blocks.1.attention.{name}"], unrotated)
        assert not np.array_equal(plain[f"blocks.1.attention.{name}"], unrotated)
    request = TraceRequest("abc", edits=edits, write=4, temperature=0)
    written = of_modern.trace(request)[1]["written"]
    text = list(b"abc")
    with apply_all(edits):
        for token in written:  # read again from the start, without a cache
            logits = of_modern.engine.logits(of_modern.model, np.array([text]))
            assert token["id"] == logits[0, -1].argmax()
            text.append(token["id"])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"what": "offf", "attention": LAYER}, "an edit must be one of no rotary, off"),
        ({"what": [], "attention": LAYER}, "an edit must be one of"),
        ({"what": "off", "attention": "blocks.*"}, "invalid name of an attention"),
        ({"what": "off", "attention": 3}, "invalid name of an attention"),
        ({"what": "off", "attention": LAYER, "head": -1}, "head must be an integer >= 0"),
        ({"what": "off", "attention": LAYER, "head": True}, "head must be an integer >= 0"),
        ({"what": "alone", "attention": LAYER}, "'alone' needs the head that stays"),
        ({"what": "no rotary", "attention": LAYER, "head": 0}, "changes all heads: remove"),
        ({"what": "off"}, "an edit must have"),
        ({"what": "off", "attention": LAYER, "more": 1}, "an edit must have"),
        ("off", "an edit must have"),
    ],
)
def test_what_is_no_edit(result, message):
    with pytest.raises(ValueError, match=message):
        Edit.from_json(result)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("off", "blocks.7.attention"), "does not apply to this model: no step matches"),
        (Edit("off", LAYER, 4), r"head must be below 4 in blocks.0.attention \(got 4\)"),
    ],
)
def test_what_cannot_be_changed(tracer, edit, message):
    with pytest.raises(ValueError, match=message):
        tracer.trace(TraceRequest(TEXT, edits=(edit,)))


def test_the_ladder_beside_a_run(tracer):
    tensors, manifest = WithLadder(tracer).trace(TraceRequest(TEXT))
    alone, _ = LadderTracer().trace(TraceRequest("Your journey starts with one step"))
    assert all(np.array_equal(tensors[name], alone[name]) for name in alone)
    assert manifest["kind"] == "model"
    assert manifest["ladder"]["text"] == "Your journey starts with one step"
    for text in ("", " ", "w " * 33):
        with pytest.raises(ValueError, match="the text must have 1 to 32 words"):
            LadderTracer().trace(TraceRequest(text))
