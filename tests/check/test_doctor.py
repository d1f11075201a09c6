"""`diagnose`: state that it restores, outputs and errors that it reports, known attentions."""

import json
import random
import signal

import jax
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

import headway
from gpts import gpt_config
from headway.attention.masks import as_mask
from headway.attention.spec import Spec
from headway.check import CHECKS, diagnose, errors
from headway.check.catalog import entries
from headway.jax import gpt
from headway.torch import GPT, MultiHeadAttention
from right import SELF, SelfAttention, attend


def by_check(diagnosis):
    return {finding.check: finding for finding in diagnosis.findings}


class Unseeded(nn.Module):
    """A module that cannot be copied, because it has a random generator."""

    def __init__(self):
        super().__init__()
        self.attention = SelfAttention(16, dropout=0.5)
        self.random = np.random.default_rng(3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def __deepcopy__(self, memory):
        raise TypeError("cannot copy a generator")

    def forward(self, x):
        out = self.attention(x)
        self.calls += 1
        if self.training:
            keep = self.random.random(out.shape) > 0.5
            return out * torch.from_numpy(2.0 * keep).to(out.dtype)
        return out


class AlwaysDropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1)


@pytest.mark.parametrize("make", [Unseeded, lambda: SelfAttention(16, dropout=0.5)])
def test_modules_and_random_states_are_restored(make):
    module = make().train()
    next(module.children()).eval()
    modes = [child.training for child in module.modules()]
    values = [*module.parameters(), *module.buffers()]
    state = [value.detach().clone() for value in values]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    diagnosis = diagnose(module, kind="self", width=16, causal=True, features=("dropout",))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert diagnosis.count("pass") > 10
    assert modes == [child.training for child in module.modules()]
    assert all(torch.equal(*pair) for pair in zip(values, state, strict=True))
    assert all(parameter.grad is None for parameter in module.parameters())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_a_module_that_cannot_be_copied_is_run_itself():
    diagnosis = diagnose(Unseeded(), kind="self", width=16, causal=True)
    assert diagnosis.ok
    assert by_check(diagnosis)["precise"].verdict == "not tested"


def test_a_diagnosis_is_repeatable():
    def with_dropout(q, k, v):
        return attend(q, k, v, dropout=0.1)

    first, second = (diagnose(with_dropout, kind="qkv", engine="torch") for _ in range(2))
    assert first == second
    assert not first.ok


def test_every_check_has_a_verdict_in_json():
    diagnosis = diagnose(attend, kind="qkv", engine="torch")
    assert [finding.check for finding in diagnosis.findings] == list(CHECKS)
    decoded = json.loads(json.dumps(diagnosis.as_dict()))
    assert decoded["ok"]
    assert {finding["verdict"] for finding in decoded["findings"]} == {"pass", "not applicable"}
    assert by_check(diagnosis)["window"].diagnosis == "the feature 'window' is not declared"


def test_an_error_of_the_attention_is_reported():
    diagnosis = diagnose(lambda q, k, v: q @ "no", kind="qkv", engine="torch")
    assert [finding.check for finding in diagnosis.failed] == ["runs"]
    assert "TypeError" in by_check(diagnosis)["runs"].measured
    assert by_check(diagnosis)["scale"].verdict == "not tested"


def test_the_line_of_an_error_is_shown():
    class Broken(nn.Module):
        def forward(self, x):
            return x.reshape(3, 5)  # the line

    (finding,) = diagnose(Broken(), width=8).failed
    assert finding.check == "runs"
    assert finding.trace[-1].startswith("test_doctor.py:")
    assert "in forward: return x.reshape(3, 5)  # the line" in finding.trace[-1]
    assert finding.look == ()


def test_code_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(errors, "SECONDS", 0.2)
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    calls = []

    def hangs(q, k, v):
        calls.append(q)
        while True:
            pass

    try:
        (finding,) = diagnose(hangs, engine="torch").failed
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "did not return within 0.2 seconds" in finding.measured
    assert "hangs" in finding.diagnosis
    assert len(calls) == 1


def test_code_that_needs_a_gpu():
    (finding,) = diagnose(lambda q, k, v: attend(q.cuda(), k, v), engine="torch").failed
    assert "needs a GPU" in finding.diagnosis


def test_what_an_attention_prints_and_changes_is_noted(capsys):
    def rude(q, k, v):
        print("attending")
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float16)
        return attend(q, k, v)

    diagnosis = diagnose(rude, engine="torch")
    assert diagnosis.ok
    assert capsys.readouterr().out == ""
    assert torch.get_default_dtype() == torch.float32
    assert diagnosis.notes[0] == "the kind 'qkv' is taken from the signature"
    assert "it prints" in diagnosis.notes[1]
    assert "the default data type, the random seed (manual_seed)" in diagnosis.notes[2]


def test_the_config_of_a_transformers_model_is_declared():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    config = transformers.MistralConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=3
    )
    model = transformers.MistralForCausalLM(config).eval()
    diagnosis = diagnose(model, only=["past", "future", "gradient"])
    assert diagnosis.ok
    assert diagnosis.notes == ("declared because of its config: window=3, rotary_base=10000",)
    assert not diagnose(model, only=["past"], window=4).ok


class Fused(nn.Module):
    """Two heads from one matrix; `change` gets weights, keys and values."""

    def __init__(self, change=lambda weights, keys, values: weights @ values, causal=True):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.change, self.causal = change, causal

    def forward(self, x):
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)
        scores = q @ k.mT / 8**0.5
        if self.causal:
            later = torch.ones(scores.shape[-2:]).triu(1).bool()
            scores = scores.masked_fill(later, -torch.inf)
        return self.out(self.change(scores.softmax(-1), k, v).transpose(1, 2).flatten(2))


def test_a_part_of_a_fused_projection_that_is_not_used():
    diagnosis = diagnose(Fused(lambda weights, keys, values: weights @ keys), causal=True)
    found = by_check(diagnosis)["used"]
    assert "qkv.weight[32:48] is never used" in found.diagnosis


def test_weights_that_are_multiplied():
    (finding,) = diagnose(Fused(lambda weights, k, v: 0.9 * weights @ v), causal=True).failed
    assert "all weights are multiplied by 0.9" in finding.diagnosis
    assert finding.proven


def test_a_causal_module_that_was_not_declared_and_has_a_fault():
    def merged(weights, keys, values):
        context = weights @ values
        return context.reshape(len(context), -1, 2, 8).transpose(1, 2)

    for finding in diagnose(Fused(merged)).failed:
        assert "declare causal=True" in finding.diagnosis
        assert "merged by a view" in finding.diagnosis


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (lambda x: x + torch.arange(x.shape[1])[:, None] / 9, "depend on its position"),
        (lambda x: x + F.pad(x, (0, 0, 1, -1)), "depend on other tokens"),
    ],
)
def test_what_comes_before_an_attention_is_told(before, said):
    class Behind(Fused):
        def forward(self, x):
            return super().forward(before(x))

    diagnosis = diagnose(Behind(causal=False))
    assert diagnosis.failed
    for finding in diagnosis.failed:
        assert said in finding.diagnosis
        assert finding.declare == "positions=True (--positions)"
    assert diagnose(Behind(causal=False), positions=True).ok


def test_the_query_axis_of_a_module_that_makes_its_keys_first():
    class KeysFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.W_query, self.W_key, self.W_value = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            keys, queries = self.W_key(x), self.W_query(x)
            return (queries @ keys.mT / 16**0.5).softmax(dim=1) @ self.W_value(x)

    torch.manual_seed(25)  # the sum of the outputs happens to have no gradient at all
    findings = {finding.check: finding for finding in diagnose(KeysFirst()).failed}
    assert "the softmax runs over the query axis" in findings["formula"].diagnosis
    assert "used" not in findings


def test_projections_are_found_in_memory_that_was_used_before():
    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(10, 10) for _ in range(3))

        def forward(self, x):
            def product(weight):
                for _ in range(9):
                    x.clone()  # is freed at once
                    weight = weight.clone()  # in its memory, if x has 10 tokens in all
                return x @ weight

            queries, keys, values = map(product, self.weights)
            return (queries @ keys.mT / 10**0.5).softmax(-1) @ values

    diagnosis = diagnose(Copies(), width=10, only=["formula", "scale"])
    assert diagnosis.count("pass") == 2


def test_rows_that_see_nothing_keep_their_own_diagnosis_beside_a_wrong_scale():
    def unscaled(q, k, v, mask=None):
        scores = q @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return scores.softmax(-1) @ v

    diagnosis = diagnose(unscaled, features=("mask",), engine="torch")
    assert [finding.check for finding in diagnosis.failed] == ["formula", "scale", "dead-rows"]
    *others, dead_rows = diagnosis.failed
    assert all("no scale at all" in finding.diagnosis for finding in others)
    assert "becomes NaN" in dead_rows.diagnosis


def test_the_scale_of_a_module_without_a_core_is_not_tested():
    diagnosis = diagnose(lambda x: (x @ x.mT / 4).softmax(-1) @ x, width=16, engine="torch")
    assert {finding.check for finding in diagnosis.untested} >= {"scale", "formula"}


def test_the_name_stays_if_checks_are_skipped():
    diagnosis = diagnose(Fused(), causal=True, skip="scale,future", name="mine")
    assert diagnosis.name == "mine"
    assert {"scale", "future"}.isdisjoint(finding.check for finding in diagnosis.findings)


def test_a_wrong_layout_is_reported():
    diagnosis = diagnose(lambda q, k, v: v[0, 0], kind="qkv", layout="packed", engine="torch")
    assert "not the layout 'packed'" in by_check(diagnosis)["runs"].measured


@pytest.mark.parametrize(
    "attention",
    [
        lambda q, k, v: attend(q, k, v)[0],
        lambda q, k, v: attend(q, k, v)[:, :, :3],
        lambda q, k, v: attend(q, k, v)[..., 0],
        lambda q, k, v: {"out": v},
        lambda q, k, v: None,
        lambda q, k, v: (),
    ],
)
def test_a_wrong_output_is_one_failure(attention):
    diagnosis = diagnose(attention, kind="qkv", engine="torch")
    assert [finding.check for finding in diagnosis.failed] == ["runs"]
    assert "returned" in by_check(diagnosis)["runs"].measured
    assert diagnosis.count("pass") == 0


def test_an_output_that_is_not_finite_is_one_failure():
    def reversed_mask(x):
        scores = x @ x.mT
        return scores.masked_fill(torch.ones_like(scores).tril().bool(), -torch.inf).softmax(-1) @ x

    diagnosis = diagnose(reversed_mask, kind="self", width=8, causal=True, engine="torch")
    assert [finding.check for finding in diagnosis.failed] == ["runs"]
    assert "not finite from token" in by_check(diagnosis)["runs"].measured
    assert "all its keys masked" in by_check(diagnosis)["runs"].diagnosis


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (SelfAttention(16, causal=True), "it is causal, but was not declared causal"),
        (nn.Sequential(SelfAttention(16, causal=False), AlwaysDropping()), "dropout is active"),
    ],
)
def test_failures_with_one_cause_have_one_diagnosis(attention, message):
    diagnosis = diagnose(attention, **SELF)
    assert len(diagnosis.failed) > 2
    assert all(message in finding.diagnosis for finding in diagnosis.failed)


def test_the_first_element_of_a_tuple_is_the_output():
    assert diagnose(lambda q, k, v: (attend(q, k, v), None), kind="qkv", engine="torch").ok


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("head_dim", [2, 5, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_any_sizes(heads, head_dim, causal):
    def attention(q, k, v):
        return attend(q, k, v, causal=causal)

    sizes = {"heads": heads, "kv_heads": 1, "head_dim": head_dim, "causal": causal}
    assert not diagnose(attention, kind="qkv", engine="torch", **sizes).failed


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"kind": "qkv", "head_dim": 1}, "head_dim must be >= 2"),
        ({"kind": "model", "vocabulary": 1}, "vocabulary must be >= 2"),
        ({"kind": "qkv", "engine": "torch", "device": "nowhere"}, "device 'nowhere' is not"),
        ({"kind": "other"}, "kind must be one of qkv, self, model"),
        ({"kind": "self"}, "width=64"),
        ({"kind": "model"}, "vocabulary=1000"),
        ({"kind": "qkv", "features": ("masks",)}, "did you mean 'mask'"),
        ({"kind": "qkv", "head": 3}, "did you mean 'heads'"),
        ({"kind": "qkv", "heads": 4, "kv_heads": 3}, r"kv_heads must divide heads \(got 3 and 4\)"),
        ({"kind": "qkv", "only": ["scales"]}, "unknown check 'scales'; did you mean 'scale'"),
        ({"kind": "qkv", "only": ["scale"], "skip": "scale"}, "no check is left"),
        ({"kind": "qkv", "causal": "yes"}, "causal must be one of|causal must be True"),
        ({"kind": "qkv", "sinks": "yes"}, "sinks must be True or False"),
        ({"kind": "qkv", "scale": -1.0}, "scale must be > 0"),
        ({"kind": "qkv", "pattern": as_mask(np.ones((3, 3), bool))}, "a mask without arrays"),
    ],
)
def test_invalid_declarations(declared, message):
    with pytest.raises(ValueError, match=message):
        diagnose(lambda q, k, v: attend(q, k, v), **declared)


def softmax_of(module):
    def attention(q, k, v):
        scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
        weights = module.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v

    return attention


@pytest.mark.parametrize(
    ("attention", "engine"),
    [(attend, "torch"), (softmax_of(np), "numpy"), (softmax_of(jax.numpy), "jax")],
)
def test_the_library_is_detected(attention, engine):
    diagnosis = diagnose(attention, kind="qkv", only=["runs", "scale"])
    assert (diagnosis.engine, diagnosis.ok) == (engine, True)


def test_short_contexts_are_detected():
    class Short(SelfAttention):
        def forward(self, x):
            return super().forward(x + torch.zeros(6, 1, dtype=x.dtype)[: x.shape[1]])

    assert diagnose(Short(), **SELF, causal=True).ok


def test_a_class_is_not_an_attention():
    with pytest.raises(ValueError, match="expected an instance, not the class SelfAttention"):
        diagnose(SelfAttention, kind="self")


# Known attentions


def test_scaled_dot_product_attention():
    assert diagnose(F.scaled_dot_product_attention).ok


def test_multihead_attention_only_fails_for_dead_rows():
    for batch_first in (True, False):
        diagnosis = diagnose(nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=batch_first))
        assert [finding.check for finding in diagnosis.failed] == ["dead-rows"]
        assert "NaN" in diagnosis.failed[0].diagnosis


def test_multihead_attention_with_additional_keys_must_be_declared():
    for module in (
        nn.MultiheadAttention(16, 4, kdim=8),
        nn.MultiheadAttention(16, 4, add_bias_kv=True),
    ):
        with pytest.raises(ValueError, match="declare the kind of MultiheadAttention"):
            diagnose(module)


def test_encoder_layer():
    assert diagnose(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)).ok


@pytest.mark.slow  # JAX compiles for each of its shapes
def test_jax_attention_only_fails_for_dead_rows():
    diagnosis = diagnose(jax.nn.dot_product_attention)
    assert [finding.check for finding in diagnosis.failed] == ["dead-rows"]
    assert "all keys equally" in diagnosis.failed[0].diagnosis


SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=2, n_head=4)
        ),
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
        lambda t: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, attn_implementation="eager")),
        lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, tie_word_embeddings=True)),
    ],
    ids=["gpt2", "llama", "llama-eager", "qwen3"],
)
def test_models_of_transformers(make):
    diagnosis = diagnose(make(transformers))
    assert diagnosis.ok
    passed = {f.check for f in diagnosis.findings if f.verdict == "pass"}
    assert passed >= {"future", "cache", "padding", "labels", "derivative"}


# Kernels that tests/attention/kernels also compares with the plain formula.
SLOW = ("kernel stacked", "kernel einsum", "kernel mha", "kernel sdpa-")


def parameter(entry):
    is_slow = entry.name.startswith(SLOW)
    return pytest.param(entry, marks=[pytest.mark.slow] * is_slow, id=entry.name)


@pytest.mark.parametrize("entry", [*map(parameter, entries(("torch", "numpy")))])
def test_attentions_of_headway_pass(entry):
    diagnosis = diagnose(entry.attention, name=entry.name, **entry.declared)
    assert diagnosis.ok
    assert diagnosis.count("pass") >= 10


@pytest.mark.slow
@pytest.mark.parametrize("entry", [*entries(("jax",))], ids=lambda entry: entry.name)
def test_attentions_of_headway_on_jax_pass(entry):
    assert diagnose(entry.attention, name=entry.name, **entry.declared).ok


def test_an_attention_on_jax_need_not_be_hashable():
    class Unhashable:
        __hash__ = None

        def __call__(self, q, k, v):
            return softmax_of(jax.numpy)(q, k, v)

    assert diagnose(Unhashable(), kind="qkv", engine="jax", only=["runs", "scale"]).ok


def test_a_leak_is_found_in_a_gpt_on_jax():
    sizes = {"vocabulary": 30, "context": 33, "width": 16, "layers": 1, "heads": 4}
    for causal in (True, False):
        config = gpt_config(**sizes, causal=causal)
        diagnosis = diagnose(gpt.Model(gpt.init(config, 0), config), only=["future", "documents"])
        failed = [finding.check for finding in diagnosis.failed]
        assert failed == ([] if causal else ["future"])
        assert diagnosis.engine == "jax"


def test_a_fault_in_headway_is_found(monkeypatch):
    model = GPT(gpt_config(vocabulary=30, context=33, width=16, layers=1, heads=4))
    layer = MultiHeadAttention(16, heads=4)
    assert diagnose(model).ok
    layer.spec = Spec()
    model.blocks[0].attention.spec = Spec()
    assert not diagnose(layer, causal=True).ok
    assert "future" in {finding.check for finding in diagnose(model).failed}
    monkeypatch.setattr("headway.attention.formula.scale_of", lambda scale, queries: 0.3)
    diagnosis = diagnose(headway.attend, kind="qkv", engine="numpy", only=["scale"])
    assert not diagnosis.ok
