"""Run by test_compiled.py in a separate process, in which torch.compile sees no shape checks.

The argument is the backend: "inductor" also generates and compiles C++, which takes half a minute.
"""

import os
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import headway
from headway.attention.dropout import drop
from headway.attention.heads import split
from headway.attention.masks import padding
from headway.attention.normalizers import entmax15, sparsemax
from headway.attention.spec import Spec
from headway.models.gpt import preset
from headway.torch import GPT
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig

BACKEND = sys.argv[1]
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def model_compiles_without_a_graph_break_and_tracing_does_not_recompile() -> None:
    sizes = {"vocabulary": 11, "context": 8, "width": 12, "layers": 2, "attention": {"heads": 3}}
    config = preset("modern", sizes, dropout=0.2)
    model = GPT(config).double().eval()
    tokens = torch.arange(16).reshape(2, 8) % 11
    compiled = torch.compile(model, fullgraph=True, backend=BACKEND)
    before = compiled(tokens)
    assert torch.allclose(before, model(tokens), atol=1e-12)
    made = graphs()
    with headway.trace(only="blocks.*.attention.weights") as steps:
        traced = compiled(tokens)
    assert list(steps) == [f"blocks.{i}.attention.weights" for i in range(2)]
    assert torch.allclose(traced, before, atol=1e-12)
    assert torch.equal(compiled(tokens), before)
    assert graphs() == made, "compiled again"


def steps_of_training_compile_to_one_graph_with_the_same_losses() -> None:
    sizes = {"vocabulary": 11, "context": 8, "width": 12, "layers": 2, "attention": {"heads": 3}}
    tokens = np.random.default_rng(0).integers(0, 11, 200)
    for precision in ("float32", "bfloat16"):
        config = TrainingConfig(
            batch=4, label_smoothing=0.1, precision=precision, optimizer="muon", compile=False
        )
        losses = []
        for is_compiled in (False, True):
            model = GPT(preset("modern", sizes, dropout=0.2))
            task = NextToken(model, tokens, tokens, replace(config, compile=is_compiled), 5 * 11)
            trainer = Trainer(model, task, config)
            made = graphs()
            if is_compiled:
                trainer._loss = torch.compile(task.loss, backend=BACKEND, fullgraph=True)
            losses.append([trainer.advance().loss for _ in range(3)])
        assert graphs() == made + 1, "compiled again"
        assert np.allclose(*losses, rtol=1e-5 if precision == "float32" else 2e-2)


def the_same_cells_are_dropped() -> None:
    x = torch.ones(4, 6, 16)
    for step in (torch.tensor(3), torch.tensor(4)):

        def dropped(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            return drop(x, Spec(dropout=0.3, seed=(1, step, 2), batch_offset=5))

        compiled = torch.compile(dropped, fullgraph=True, backend=BACKEND)(x, step)
        assert torch.equal(compiled, dropped(x, step))


def rotary_positions_are_computed_once() -> None:
    """Once per model, not once per layer: the backend gets two sines for any number of layers."""
    sizes = {"vocabulary": 11, "context": 8, "width": 12, "layers": 3, "attention": {"heads": 3}}
    model, called = GPT(preset("modern", sizes)), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(model, fullgraph=True, backend=backend)(torch.arange(16).reshape(2, 8) % 11)
    assert sum("sin" in name for name in called) == 1
    assert sum("headway.stored" in name for name in called) == 2


def normalizers_compile() -> None:
    queries = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(5, 5, dtype=torch.float64)
    bias[1:3, 2:] = -torch.inf
    bias[4] = -torch.inf
    for normalizer in (sparsemax, entmax15):

        def attend(q: torch.Tensor, normalizer=normalizer) -> torch.Tensor:
            return headway.attend(q, q, q, bias=bias, normalizer=normalizer)

        compiled = torch.compile(attend, fullgraph=True, backend=BACKEND)
        assert torch.allclose(compiled(queries), attend(queries), atol=1e-12)
        (one,) = torch.autograd.grad(compiled(queries).square().sum(), queries)
        (other,) = torch.autograd.grad(attend(queries).square().sum(), queries)
        assert one.isfinite().all()
        assert torch.allclose(one, other, atol=1e-10)


def tiles_compile_as_one_operation() -> None:
    inputs = [torch.randn(2, heads, 11, 4, dtype=torch.float64) for heads in (6, 3, 3)]
    inputs = [x.requires_grad_() for x in inputs]
    options = {"causal": True, "window": 6, "softcap": 2.0, "scale": 0.4}

    def tiled(*inputs: torch.Tensor) -> torch.Tensor:
        return headway.attend(*inputs, kernel="tiled", **options)

    output = torch.compile(tiled, fullgraph=True)(*inputs)
    assert torch.allclose(output, tiled(*inputs), rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(output.sin().sum(), inputs)
    expected = torch.autograd.grad(tiled(*inputs).sin().sum(), inputs)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def tiles_of_a_transposed_view_compile() -> None:
    x = torch.randn(1, 11, 12, dtype=torch.float64, requires_grad=True)

    def tiled(x: torch.Tensor) -> torch.Tensor:
        heads = split(x, 3)  # a transposed view: with one text no copy makes it contiguous
        return headway.attend(heads, heads, heads, causal=True, kernel="tiled")

    (gradient,) = torch.autograd.grad(torch.compile(tiled, fullgraph=True)(x).sin().sum(), x)
    (expected,) = torch.autograd.grad(tiled(x).sin().sum(), x)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)


def tiles_raise_for_options_that_they_do_not_support_compiled() -> None:
    x = torch.randn(2, 3, 11, 4)
    errors = {
        "only causal and window as a mask": {"mask": padding(torch.tensor([3, 5]))},
        "no dropout": {"dropout": 0.5, "seed": 3},
        "supports no bias": {"bias": torch.zeros(11, 11)},
    }
    for reason, options in errors.items():

        def tiled(x: torch.Tensor, options=options) -> torch.Tensor:
            return headway.attend(x, x, x, kernel="tiled", **options)

        assert tiled(x).isfinite().all()
        with pytest.raises(Exception, match=reason):
            torch.compile(tiled, fullgraph=True, backend="eager")(x)


def triton_compiles_as_one_operation() -> None:
    inputs = [torch.randn(1, heads, 11, 4) for heads in (2, 1, 1)]
    inputs = [x.requires_grad_() for x in inputs]

    def flash(*inputs: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        options = {"causal": True, "window": 6, "dropout": 0.2, "seed": (1, step)}
        return headway.attend(*inputs, kernel="triton", **options)

    compiled = torch.compile(flash, fullgraph=True, backend=BACKEND)
    made = graphs()
    for step in (torch.tensor(3), torch.tensor(4)):
        outputs = compiled(*inputs, step=step), flash(*inputs, step=step)
        assert torch.equal(*outputs)
        gradients = (torch.autograd.grad(output.sin().sum(), inputs) for output in outputs)
        assert all(map(torch.equal, *gradients))
    assert graphs() == made + 1, "compiled again"


model_compiles_without_a_graph_break_and_tracing_does_not_recompile()
steps_of_training_compile_to_one_graph_with_the_same_losses()
the_same_cells_are_dropped()
rotary_positions_are_computed_once()
tiles_compile_as_one_operation()
tiles_of_a_transposed_view_compile()
tiles_raise_for_options_that_they_do_not_support_compiled()
normalizers_compile()
if find_spec("triton") is not None:
    triton_compiles_as_one_operation()
print("all compiled")
