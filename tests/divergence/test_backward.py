"""The loss, the gradients and the updates of two models are compared."""

import copy

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import command
import headway
import planted
from gpts import gpt_config
from headway.attention import dispatch
from headway.divergence.parameters import matches_of
from headway.torch import GPT

FAULTS = [f for f in planted.FAULTS if f.first.startswith(("loss", "gradients.", "updates."))]


def report(folders, port, fault):
    model, module = planted.load(port, fault, folders[port])
    functions = {"loss": module.loss, "optimizer": module.optimizer}
    return headway.diff(folders[port], model, planted.tokens(), backward=True, **functions)


@pytest.mark.parametrize("port", planted.PORTS)
def test_a_right_port_trains_in_the_same_way(port, folders):
    result = report(folders, port, None)
    assert result.is_same
    states = {step.name: step.state for step in result.steps}
    assert states["loss"] == "same"
    kinds = {step.name.partition(".")[0] for step in result.steps}
    assert {"gradients", "updates"} <= kinds
    trained = [n for n in states if n.startswith(("gradients.", "updates."))]
    assert {states[name] for name in trained} == {"same"}  # all were found


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_of_training_is_named(fault, folders):
    result = report(folders, fault.port, fault)
    assert result.first == fault.first
    assert not result.is_same


def test_what_a_wrong_gradient_looks_like(folders):
    def looks(port, name):
        fault = next(f for f in FAULTS if f.port == port and f.name == name)
        return report(folders, port, fault).cause.looks

    assert "two parameters have these values" in looks(
        "gpt2", "the output layer is a copy of the embedding"
    )
    assert looks("mistral", "the embedding is frozen") == "all numbers are 0"
    assert looks("gpt2", "another learning rate") == "all numbers are 0.3 times as large"
    assert "only the second update" in looks("gpt2", "the default betas")


def test_a_loss_with_the_right_value_and_a_wrong_gradient(folders):
    model, module = planted.load("llama", None, folders["llama"])

    def loss(model, tokens):
        value = module.loss(model, tokens)
        return value.detach() + 0.5 * (value - value.detach())

    result = headway.diff(folders["llama"], model, backward=True, loss=loss)
    assert result.first == "loss"
    assert "its gradient is wrong" in result.cause.looks
    assert result.is_proved  # the gradients of the right loss agree
    assert [cause.name for cause in result.causes] == ["loss"]


@pytest.mark.parametrize("settings", [{}, {"engine": "jax"}], ids=str)
@pytest.mark.parametrize("port", ["gpt2", "bert"])
def test_both_engines_have_the_same_gradients(port, settings, folders):
    result = headway.diff(folders[port], folders[port], b_settings=settings, backward=True)
    assert result.is_same
    count = len([step for step in result.steps if step.name.startswith("gradients.")])
    assert count == len(dict(headway.load(folders[port]).model.named_parameters()))


def test_a_wrong_gradient_of_a_named_model():
    right = GPT(gpt_config(61, 16, 24, 2, 3))
    wrong = copy.deepcopy(right)
    wrong.blocks[1].mlp.up.weight.requires_grad_(requires_grad=False)
    result = headway.diff(right, wrong, backward=True)
    assert result.first == "gradients.blocks.1.mlp.up.weight"
    assert "optimizer is not compared" in result.notes[0]


def test_gradients_are_compared_only_if_the_logits_agree(folders):
    fault = next(f for f in planted.FAULTS if f.port == "gpt2" and f.kind == "scale")
    model, module = planted.load("gpt2", fault, folders["gpt2"])
    result = headway.diff(folders["gpt2"], model, backward=True, loss=module.loss)
    assert result.first == fault.first
    assert "because the logits differ already" in result.notes[0]
    with pytest.raises(ValueError, match="gradients need at least 2 tokens"):
        headway.diff(folders["gpt2"], folders["gpt2"], [[1]], backward=True)
    with pytest.raises(ValueError, match="--backward cannot be combined with trace files, dtype"):
        headway.diff(folders["gpt2"], folders["gpt2"], b_settings={"cache": 1}, backward=True)


def test_the_command_takes_the_loss_and_the_optimizer_of_the_file(folders, tmp_path):
    fault = next(f for f in FAULTS if f.port == "gpt2" and f.first == "loss")
    code = planted.changed(fault) + f"\n\ndef port():\n    return load({str(folders['gpt2'])!r})\n"
    (tmp_path / "port.py").write_text(code, encoding="utf-8")
    words = "diff", str(folders["gpt2"]), "port.py:port", "--backward"
    output = command.headway(tmp_path, *words, rc=1).stdout
    assert "first wrong step: loss" in output
    assert "updates.embedding.weight" in output


def of_values(value, **tensors):
    """What `matches_of` gathers for one parameter from tensors with the same names."""
    match = matches_of({"x": value}, tensors).get("x")
    return None if match is None else [*match.gathered(tensors)]


def test_parameters_are_found_in_any_arrangement():
    x = torch.randn(12, 5, dtype=torch.float64)
    q, k = x[:8], x[8:]
    for tensors in (
        {"a": x.T.contiguous()},
        {"a": torch.cat([torch.randn(3, 5).double(), x])},
        {"a": x[torch.randperm(12)]},
        {"a": q, "b": k},
        {"a": q.T.contiguous(), "b": k},
        {"a": x.reshape(3, 4, 5)},
        {"a": x.reshape(3, 4, 5).permute(0, 2, 1).contiguous()},
        {"a": x.T.reshape(5, 3, 4).contiguous()},
        {"a": x.reshape(3, 4, 5).transpose(0, 1).contiguous()},
    ):
        (value,) = of_values(x, **tensors)
        assert torch.equal(value, x)
        filled = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        matches_of({"x": x}, tensors)["x"].scatter(2 * x, filled)
        (value,) = matches_of({"x": x}, tensors)["x"].gathered(filled)
        assert torch.equal(value, 2 * x)
    wide = torch.randn(5, 12, dtype=torch.float64)  # the columns are heads and features
    (value,) = of_values(wide, a=wide.reshape(5, 3, 4).contiguous())
    assert torch.equal(value, wide)
    vector = torch.randn(6, dtype=torch.float64)
    for tensors in (
        {"a": torch.cat([torch.ones(2).double(), vector])},
        {"a": vector[:2], "b": vector[2:]},
        {"a": vector.flip(0)},
    ):
        assert torch.equal(of_values(vector, **tensors)[0], vector)
    assert len(of_values(torch.ones(4), a=torch.ones(4), b=torch.ones(4))) == 2
    assert len(of_values(x, a=x, b=x.clone())) == 2  # such as an untied output layer
    match = matches_of({"x": x}, {"a": 0.5 * x.float()})["x"]
    assert match.is_scaled
    (gradient,) = match.gathered({"a": torch.full((12, 5), 4.0)}, is_gradient=True)
    assert torch.allclose(gradient, torch.full((12, 5), 2.0).double())
    assert of_values(x, a=x + 1e-3) is None
    assert of_values(x, a=x[:11]) is None


def test_a_port_with_untrained_weights_is_the_same(tmp_path):
    """Its biases are 0 and its norms 1, so that values do not tell them apart."""
    config = transformers.AutoConfig.for_model("gpt2", **planted.CONFIGS["gpt2"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, module = planted.load("gpt2", None, tmp_path)
    functions = {"loss": module.loss, "optimizer": module.optimizer}
    result = headway.diff(tmp_path, model, backward=True, **functions)
    assert result.is_same
    assert "not found" not in {step.state for step in result.steps}


def test_a_kernel_with_a_wrong_gradient(folders, monkeypatch):
    kernel = dispatch.KERNELS["tiled"]

    def run(*arguments):
        context = kernel.run(*arguments)
        return context.detach() + 0.5 * (context - context.detach())

    wrong = kernel._replace(run=run)
    monkeypatch.setattr(dispatch, "KERNELS", {**dispatch.KERNELS, "tiled": wrong})
    settings = {"attention": "tiled"}
    result = headway.diff(folders["llama"], folders["llama"], b_settings=settings)
    assert result.is_same
    result = headway.diff(folders["llama"], folders["llama"], b_settings=settings, backward=True)
    assert result.first == "gradients.blocks.2.attention.v.weight"


@pytest.mark.parametrize("b", ["folder", "port"])
def test_the_transposed_matrices_of_gpt2_in_transformers(b, folders):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    other = folders["gpt2"] if b == "folder" else planted.load("gpt2", None, folders["gpt2"])[0]
    result = headway.diff(model, other, planted.tokens(), backward=True)
    assert result.is_same
    gradients = [step for step in result.steps if step.name.startswith("gradients.")]
    assert {step.state for step in gradients} == {"same"}


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"loss": lambda model, tokens: 3.0}, "the loss of GPT2, or its gradient, raised"),
        ({"loss": lambda model, tokens: model(tokens).sum(-1)}, "the loss of GPT2, or its"),
        ({"loss": lambda model: 0}, "the loss of GPT2, or its gradient, raised TypeError"),
        ({"optimizer": lambda model: "Adam"}, "returned str; expected a torch.optim.Optimizer"),
        (
            {"optimizer": lambda model: torch.optim.LBFGS(model.parameters())},
            "the optimizer of GPT2 raised TypeError",
        ),
    ],
)
def test_a_wrong_loss_or_optimizer_is_one_line(functions, message, folders):
    model, _ = planted.load("gpt2", None, folders["gpt2"])
    with pytest.raises(ValueError, match=message):
        headway.diff(folders["gpt2"], model, backward=True, **functions)


def test_the_loss_is_the_mean_over_the_next_tokens(folders):
    model, _ = planted.load("llama", None, folders["llama"])
    batch = planted.tokens()
    result = headway.diff(folders["llama"], model, batch, backward=True)
    expected = cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    assert result.values["loss"][0].item() == pytest.approx(expected.item(), rel=1e-5)
