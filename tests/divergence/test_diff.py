"""`headway diff` names the first wrong step of models with faults, and is silent about others."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers

import command
import headway
import planted
from gpts import gpt_config
from headway.attention import dispatch
from headway.attention.spec import Spec
from headway.divergence import looks
from headway.divergence.matching import Layout, Summary, equal, layouts
from headway.divergence.measure import difference
from headway.torch import GPT

FORWARD = [
    fault
    for fault in planted.FAULTS
    if fault.kind not in ("loss", "gradient", "optimizer", "cache")
    and not fault.first.startswith("gradients")
]


def report(folders, port, fault=None):
    model, _ = planted.load(port, fault, folders[port])
    return headway.diff(folders[port], model, planted.tokens())


@pytest.mark.parametrize("port", planted.PORTS)
def test_a_right_port_is_the_same(port, folders):
    result = report(folders, port)
    assert result.is_same
    assert result.first is None


NAMED = {
    ("gpt2", "blocks.0.attention.output"),
    ("gpt2", "blocks.0.attention.queries"),
    ("gpt2", "blocks.0.attention_norm"),
    ("qwen3", "blocks.0.attention.queries"),
    ("qwen3", "blocks.0.attention.masked"),
    ("mistral", "blocks.0.attention.scaled"),
    ("mistral", "blocks.0.mlp.hidden"),
    ("bert", "blocks.0.attention.weights"),
    ("bert", "logits"),
    ("qwen3", "embedded"),
}
SAMPLE = [
    next(fault for fault in FORWARD if (fault.port, fault.first) == pair) for pair in sorted(NAMED)
]


@pytest.mark.parametrize("fault", SAMPLE, ids=str)
def test_the_first_wrong_step_is_named_and_proved(fault, folders):
    result = report(folders, fault.port, fault)
    assert result.first == fault.first
    assert result.is_proved
    assert not result.is_same


ROUNDED = [
    (
        "gpt2",
        "self.mlp(self.ln_2(x))",
        "self.mlp(self.ln_2(x).half().to(x.dtype))",
        "blocks.0.mlp_norm",
    ),
    ("gpt2", "x = self.ln_f(x)", "x = self.ln_f(self.ln_f(x))", "final_norm"),
    (
        "qwen3",
        "x = self.embed[tokens]",
        "x = torch.cat([2 * self.embed[tokens][:, :1], self.embed[tokens][:, 1:]], 1)",
        "embedded",
    ),
    ("mistral", "self.final_norm(x)", "self.final_norm(x).half().to(x.dtype)", "final_norm"),
    # The norm changes its input itself.
    (
        "llama",
        "return x * torch.rsqrt(x.pow(2)",
        "x = x - x.mean(-1, keepdim=True)\n        return x * torch.rsqrt(x.pow(2)",
        "blocks.0.attention_norm",
    ),
]


@pytest.mark.parametrize(("port", "old", "new", "first"), ROUNDED)
def test_a_right_step_that_is_changed_before_it_is_read(port, old, new, first, folders):
    result = report(folders, port, planted.Fault(port, "", old, new, first, "norm"))
    assert result.first == first
    assert result.is_proved


class Rounded(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).bfloat16()


def test_logits_that_are_rounded_at_the_end_cannot_be_replaced(folders):
    model, _ = planted.load("llama", None, folders["llama"])
    result = headway.diff(folders["llama"], Rounded(model), planted.tokens())
    assert result.first == "logits"
    assert not result.is_proved


class OneLine(torch.nn.Module):
    """Norms of another layer, and operations of several shapes in one line."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        for n, layer in enumerate(model.h):
            layer.ln_2.forward = partial(self.norm, model.h[1 - n].ln_2)

    def norm(self, p, x):
        return (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True, unbiased=False) + p.eps) ** -0.5 * p.weight + p.bias  # fmt: skip  # noqa: E501

    def forward(self, tokens):
        return self.model(tokens)


def test_operations_of_several_shapes_in_one_line(folders):
    model, _ = planted.load("gpt2", None, folders["gpt2"])
    result = headway.diff(folders["gpt2"], OneLine(model), planted.tokens())
    assert result.first == "blocks.0.mlp_norm"
    assert not result.notes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_most_of_all_planted_faults_are_named_and_proved(folders):
    """The targets are 0.95 named and 0.9 proved."""
    results = {fault: report(folders, fault.port, fault) for fault in FORWARD}
    named = [fault for fault, result in results.items() if result.first == fault.first]
    proved = [fault for fault, result in results.items() if result.is_proved]
    assert len(named) >= 0.95 * len(FORWARD)
    assert len(proved) >= 0.95 * len(FORWARD)
    assert not any(result.is_same for result in results.values())


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"attention": "tiled"}, {"engine": "jax"}], ids=str
)
@pytest.mark.parametrize("port", ["llama", "qwen3"])
def test_a_model_is_the_same_in_another_format_kernel_and_engine(port, settings, folders):
    result = headway.diff(folders[port], folders[port], b_settings=settings)
    assert result.is_same
    assert {step.state for step in result.steps} == {"same"}


def test_two_models_with_names_and_a_fault_in_every_layer(folders):
    """A model of Headway whose scale is wrong."""
    wrong = headway.load(folders["llama"], dtype="float32").model
    for block in wrong.blocks:
        block.attention.spec = block.attention.spec._replace(scale=0.5)
    result = headway.diff(folders["llama"], wrong, planted.tokens())
    assert result.first == "blocks.0.attention.scaled"
    assert result.cause.in_all_layers
    assert len(result.causes) == 1
    assert result.is_proved
    assert "times as large" in result.cause.looks


def test_a_wrong_kernel_is_named_by_its_context(folders, monkeypatch):
    kernel = dispatch.KERNELS["tiled"]
    wrong = kernel._replace(run=lambda *a: kernel.run(*a) * 1.01)
    monkeypatch.setattr(dispatch, "KERNELS", {**dispatch.KERNELS, "tiled": wrong})
    result = headway.diff(folders["llama"], folders["llama"], b_settings={"attention": "tiled"})
    assert result.first == "blocks.0.attention.context"
    assert result.is_proved


def test_the_command_prints_the_cause_and_fails(folders, tmp_path):
    fault = next(f for f in FORWARD if (f.port, f.kind) == ("qwen3", "rotary"))
    code = planted.changed(fault) + f"\n\ndef port():\n    return load({str(folders['qwen3'])!r})\n"
    (tmp_path / "port.py").write_text(code, encoding="utf-8")
    output = command.headway(tmp_path, "diff", str(folders["qwen3"]), "port.py:port", rc=1).stdout
    assert f"first wrong step: {fault.first}" in output
    assert "cause is proved" in output
    words = "diff", str(folders["qwen3"]), "port.py:port", "--json"
    assert json.loads(command.headway(tmp_path, *words, rc=1).stdout)["first"] == fault.first
    command.headway(tmp_path, "diff", str(folders["qwen3"]), str(folders["qwen3"]), rc=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--b", "dtype"), "--a and --b take name=value"),
        (("--b", "dtyp=float32"), "setting must be one of attention, dtype, device, engine, cache"),
        (("--b", "attention=flsh"), "attention must be one of"),
        (("a text",), "no side has a tokenizer"),
    ],
)
def test_bad_input_is_one_line(words, message, folders, tmp_path):
    done = command.headway(tmp_path, "diff", *[str(folders["llama"])] * 2, *words, rc=1)
    output = done.stderr
    assert message in output
    assert len(output.strip().splitlines()) == 1


def test_the_report_is_valid_json(folders):
    fault = next(f for f in FORWARD if f.port == "gpt2" and f.name == "no causal mask")
    named = loaded(folders["gpt2"])
    named.blocks[0].attention.spec = Spec()
    for model in (named, planted.load("gpt2", fault, folders["gpt2"])[0]):
        result = headway.diff(folders["gpt2"], model)
        assert result.first == "blocks.0.attention.masked"
        assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["first"] == result.first


def test_what_cannot_be_compared_is_one_line(folders):
    with pytest.raises(ValueError, match="33 tokens do not fit a context of 32; give fewer"):
        headway.diff(folders["llama"], folders["llama"], np.zeros((1, 33), int))
    with pytest.raises(ValueError, match="dtype= needs a model whose steps have names"):
        headway.diff(folders["llama"], torch.nn.Identity(), b_settings={"dtype": "float32"})
    with pytest.raises(ValueError, match="remove engine=jax from one side"):
        headway.diff(folders["llama"], torch.nn.Identity(), a_settings={"engine": "jax"})
    with pytest.raises(ValueError, match="tokens must be integers"):
        headway.diff(folders["llama"], folders["llama"], [[0.5]])
    short = GPT(gpt_config(9, 7, 8, 1, 2))
    assert headway.diff(short, short).is_same  # fewer random tokens than usual


def test_models_of_other_sizes_differ_where_the_shapes_do(folders):
    result = headway.diff(folders["qwen3"], folders["llama"])
    assert result.first == "embedded"
    assert result.cause.looks == "its shape is (2, 23, 32) instead of (2, 23, 24)"
    assert not result.is_proved


def loaded(folder):
    return headway.load(folder, device="cpu", dtype="float32").model


def states(result):
    return {step.name: step.state for step in result.steps}


def note(result):
    (line,) = result.notes
    return line


def test_of_a_side_that_raises_the_steps_before_are_compared(folders):
    right, _ = planted.load("llama", None, folders["llama"])
    broken = copy.deepcopy(right)
    broken.layers[1].feed_forward.forward = lambda x: x @ x
    named = loaded(folders["llama"])
    named.blocks[1].mlp.forward = lambda x: x @ x
    for model in (broken, named):
        result = headway.diff(folders["llama"], model)
        assert not result.is_same
        assert "raised RuntimeError" in note(result)
        assert states(result)["blocks.1.attention.output"] == "same"
        assert states(result)["blocks.1.mlp.output"] == "not found"
        assert result.first is None
    with pytest.raises(ValueError, match="GPT raised RuntimeError"):
        headway.diff(named, right)
    with pytest.raises(ValueError, match="the steps of Transformer have no names"):
        headway.diff(right, folders["llama"])


@pytest.mark.parametrize("is_named", [True, False])
def test_of_nan_the_steps_before_are_compared(is_named, folders):
    models = loaded(folders["llama"]), planted.load("llama", None, folders["llama"])[0]
    with torch.no_grad():
        models[0].blocks[0].mlp.up.weight[0] = torch.nan
        models[1].layers[0].feed_forward.w3.weight[0] = torch.nan
    result = headway.diff(models[0], models[not is_named])
    assert "GPT computes NaN from blocks.0.mlp.hidden on; only" in note(result)
    assert states(result)["blocks.0.attention.output"] == "same"
    assert {*states(result).values()} <= {"same", "not found"}
    assert [*states(result)][-1] == "blocks.0.mlp_norm"
    assert not result.is_same
    result = headway.diff(folders["llama"], models[not is_named])  # NaN only here
    assert result.first == "blocks.0.mlp.hidden"
    assert "cells are NaN" in result.cause.looks


def test_of_other_vocabularies_the_first_logits_are_compared(folders):
    config = transformers.AutoConfig.from_pretrained(folders["llama"])
    original = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"])
    config.vocab_size += 3
    padded = transformers.AutoModelForCausalLM.from_config(config)
    state = original.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, 3))
    padded.load_state_dict(state)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = padded

        def forward(self, tokens):
            return self.model(tokens)

    for model in (padded, Plain()):
        result = headway.diff(folders["llama"], model)
        assert result.is_same
        assert "vocabularies of 61 and 64 tokens; the logits of the first 61" in note(result)
        with torch.no_grad():
            padded.lm_head.weight[3] += 1
        assert headway.diff(folders["llama"], model).first == "logits"
        with torch.no_grad():
            padded.lm_head.weight[3] -= 1


def test_of_other_numbers_of_layers_the_common_ones_are_compared(folders):
    short = loaded(folders["llama"])
    short.blocks = short.blocks[:2]
    result = headway.diff(folders["llama"], short)
    assert note(result) == "llama has 3 layers, and GPT has 2"
    assert result.first == "blocks.2.attention_norm"
    assert result.cause.looks == "GPT has no such layer"
    assert states(result)["blocks.1.after_mlp"] == "same"
    assert not result.is_proved
    assert headway.diff(short, folders["llama"]).first == "final_norm"


def found(step, other):
    return [*equal(step, Summary.of(step), [(0, other, Summary.of(other))], 1e-6)]


def test_layouts_are_permutations_that_keep_the_axes_whole():
    step = torch.randn(2, 4, 5, 3)
    for other in (
        step.transpose(1, 2).flatten(2),
        step.flatten(0, 1),
        step.reshape(2, 2, 2, 5, 3),
        step.transpose(1, 2).reshape(10, 12),
        step.permute(2, 0, 1, 3),
    ):
        (_, layout), *_ = found(step, other)
        assert torch.equal(layout.apply(step), other)
        assert torch.equal(layout.undo(other, step.shape), step)
    assert layouts((2, 3), (4, 2)) == ()
    scores = torch.randn(2, 5, 5)
    assert found(scores, scores + 0)
    assert not found(scores, scores.mT)  # a transpose is another matrix
    assert not found(step, step + 1e-3)
    assert layouts((2, 5, 5), (2, 5, 5)) == (Layout((0, 1, 2), (2, 5, 5)),)


def test_differences_of_masked_scores():
    a = torch.tensor([1.0, -torch.inf, 3.0])
    assert difference(a, torch.tensor([1.0, -1e9, 3.0])) == 0
    assert difference(a, torch.tensor([1.0, 2.0, 3.0])) == np.inf
    assert difference(a, torch.tensor([1.0, -torch.inf, 3.3])) == pytest.approx(0.1)
    assert difference(torch.tensor([torch.nan]), torch.tensor([torch.nan])) == 0
    assert difference(torch.tensor([1.0]), torch.tensor([torch.nan])) == np.inf


def test_what_a_difference_looks_like():
    a = torch.randn(2, 4, 6, 3)
    hidden = a.masked_fill(torch.ones(6, 3).triu(1).bool(), -torch.inf)
    more = a.masked_fill(torch.ones(6, 3).triu().bool(), -torch.inf)
    for b, words in (
        (2.5 * a, "2.5 times as large"),
        (a.roll(1, -2), "one before"),
        (a.roll(-1, -2), "one after"),
        (a.flip(1), "the heads are in another order"),
        (a.flip(-1), "features of each token"),
        (a.roll(1, 0).flip(1).mT.reshape(a.shape), "such as after a transpose"),
        (torch.stack([a[..., 1], -a[..., 0], a[..., 2]], -1) + 0, "only the directions differ"),
        (a * 0, "all numbers are 0"),
        (torch.where(torch.arange(6)[:, None] == 2, 7.0, a), "only some positions differ: 2"),
        (torch.where(torch.arange(6)[:, None] == 0, a, 7.0), "all positions differ except 0"),
        (torch.randn_like(a), "correlat"),
        (
            a * torch.linspace(0.9, 1.1, 6)[:, None],
            "another factor, 0.9 to 1.1, as with another eps",
        ),
        (a * torch.nan, "144 cells are NaN"),
    ):
        assert words in looks.describe(a, b, 1e-6)
    stream = torch.randn(2, 6, 5)
    assert "same in each text" in looks.describe(stream, stream + torch.randn(6, 5), 1e-6)
    assert "not correlated" in looks.describe(torch.randn(2, 99, 99), torch.randn(2, 99, 99), 1e-6)
    assert looks.describe(hidden, more, 1e-6).startswith("the mask hides 24 other cells, and 0")
