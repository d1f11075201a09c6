"""Compiled code for generation on a CPU: the same text, kept between processes, or a warning."""

from pathlib import Path

import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, gpt_config
from headway.attention.masks import causal, window
from headway.attention.spec import Spec
from headway.torch import GPT, ahead
from headway.torch import generate as module
from headway.torch.decode import LastTokens
from headway.torch.generate import generate

PROMPT = np.array([3, 1, 4, 1, 5])
SIZES = {"gpt2": {}, "modern": {"kv_heads": 2, **MODERN}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the compiled code, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "headway" / "torch"


def random_model(**choices):
    model = GPT(gpt_config(27, 16, 16, 2, 4, **choices)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def identity(model):
    """The hash in the name of the model's file."""
    with pytest.MonkeyPatch.context() as patch:
        names = []
        patch.setattr(ahead.cache, "path", lambda _, file: names.append(file) or Path(file))
        assert LastTokens(model).compiled(may_compile=False) is None
    return names[0]


def never(*arguments, **options):
    raise AssertionError("must not be called")


@pytest.mark.parametrize("choices", SIZES.values(), ids=SIZES)
def test_the_identity_is_that_of_the_operations_not_of_the_weights(choices):
    model = random_model(**choices)
    first = identity(model)
    assert identity(random_model(**choices)) == first
    model.blocks[1].mlp.activation = torch.sigmoid
    assert identity(model) != first


def test_another_mask_or_number_is_another_identity():
    model = random_model()
    first, identities = identity(model), set()
    for width in (5, 6):
        for block in model.blocks:
            block.attention.spec = Spec(mask=causal & window(width))
        identities.add(identity(model))
    model = random_model()
    model.final_norm.eps = 0.1
    assert len({first, *identities, identity(model)}) == 4


def test_a_constant_is_part_of_the_identity():
    model, identities = random_model(), set()
    for number in (torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([1])):
        model.blocks[0].mlp.activation = lambda x, n=number: x * n
        identities.add(identity(model))
    assert len(identities) == 3


def test_few_tokens_look_for_no_code(monkeypatch):
    monkeypatch.setattr(ahead, "compiled", never)
    assert len([*generate(random_model(), [PROMPT], tokens=40)]) == 40


def test_code_that_is_not_there_is_compiled_only_for_many_tokens(monkeypatch):
    """It is looked for once, although the text is read again when the context is full."""
    model, calls, compiled = random_model(), [], ahead.compiled
    expected = [*generate(model, [PROMPT], tokens=40)]
    monkeypatch.setattr(ahead, "compiled", lambda *a, **o: calls.append(o) or compiled(*a, **o))
    monkeypatch.setattr(ahead, "_compile", never)
    parameters = sum(p.numel() for p in model.parameters())
    saved = 2 * module.SAVED_PER_LAYER + parameters * module.SAVED_PER_PARAMETER
    monkeypatch.setattr(module, "LOADS_FROM", 39.5 * saved)
    assert [*generate(model, [PROMPT], tokens=40)] == expected
    assert [call["may_compile"] for call in calls] == [False]
    assert [*generate(model, [PROMPT], tokens=39)] == expected[:39]
    assert len(calls) == 1


@pytest.mark.parametrize("prompts", [[PROMPT, PROMPT], [PROMPT[:0]]], ids=["two", "empty"])
def test_prompts_that_compiled_code_cannot_read_look_for_none(prompts, monkeypatch):
    monkeypatch.setattr(module, "LOADS_FROM", 0)
    monkeypatch.setattr(ahead, "compiled", never)
    generate(random_model(), prompts, tokens=2)


def test_16_bit_models_look_for_no_code(monkeypatch):
    """Reading half as many bytes saves more than compiled code does."""
    monkeypatch.setattr(module, "LOADS_FROM", 0)
    monkeypatch.setattr(ahead, "compiled", never)
    generate(random_model().bfloat16(), [PROMPT], tokens=2)


def test_an_open_trace_looks_for_no_code(monkeypatch):
    monkeypatch.setattr(module, "LOADS_FROM", 0)
    monkeypatch.setattr(ahead, "compiled", never)
    model = random_model()
    with headway.trace("embedded") as traced:
        [*generate(model, [PROMPT], tokens=2)]
    assert [step.shape[1] for step in traced["embedded"]] == [5, 1]


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_product_with_one_row_is_that_of_a_linear_layer(shape, has_bias):
    x, weight, bias = torch.randn(shape), torch.randn(4, 5), torch.randn(4) if has_bias else None
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(ahead._linear(x, weight, bias), expected)


def failing(*arguments, **options):
    raise RuntimeError("no compiler\n was found " + 40 * "word ")


def compiling(monkeypatch):
    monkeypatch.setattr(module, "LOADS_FROM", 0)
    monkeypatch.setattr(module, "COMPILES_FROM", 0)


def test_a_compiler_that_fails_is_one_warning_and_the_text_is_the_same(monkeypatch):
    model = random_model()
    expected = [*generate(model, [PROMPT], tokens=40)]
    compiling(monkeypatch)
    monkeypatch.setattr(torch.export, "export", failing)
    with pytest.warns(UserWarning, match="compil") as warnings:
        assert [*generate(model, [PROMPT], tokens=40)] == expected
    begin, end = (str(warning.message) for warning in warnings)
    assert begin.startswith("each step is compiled first")
    assert end.startswith("text is generated without compiling: no compiler was found")
    assert end.endswith("word …")


def test_no_compiler_is_one_warning_before_any_work(monkeypatch):
    model = random_model()
    expected = [*generate(model, [PROMPT], tokens=40)]
    compiling(monkeypatch)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match="without compiling, which needs a C.. compiler") as said:
        assert [*generate(model, [PROMPT], tokens=40)] == expected
    assert len(said) == 1


def test_a_damaged_file_is_deleted_so_that_it_is_compiled_again(monkeypatch, folder):
    model = random_model()
    expected = [*generate(model, [PROMPT], tokens=40)]
    compiling(monkeypatch)
    monkeypatch.setattr(ahead, "_compile", lambda *arguments: arguments[-1].write_text("damaged"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="text is generated without compiling: .") as said:
            assert [*generate(model, [PROMPT], tokens=40)] == expected
        assert len(said) == 2
        assert not [*folder.iterdir()]


def test_looking_for_code_needs_no_folder(monkeypatch, folder, recwarn):
    monkeypatch.setattr(module, "LOADS_FROM", 0)
    assert len([*generate(random_model(), [PROMPT], tokens=2)]) == 2
    assert not folder.exists()
    assert not recwarn


@pytest.mark.slow
@pytest.mark.parametrize("choices", SIZES.values(), ids=SIZES)
def test_compiled_code_generates_the_same_and_is_kept(choices, monkeypatch, folder):
    model = random_model(**choices)
    options = {"tokens": 40, "temperature": 0}
    expected = [*generate(model, [PROMPT], **options)]
    compiling(monkeypatch)
    before, logits, run = len(ahead._loaded), [], ahead._Loaded.run
    monkeypatch.setattr(ahead._Loaded, "run", lambda *a: logits.append(run(*a)) or logits[-1])
    with pytest.warns(UserWarning, match="each step is compiled first"):
        assert [*generate(model, [PROMPT], **options)] == expected
    assert len(logits) >= 20
    assert len([*folder.iterdir()]) == 1
    text = torch.tensor([[*PROMPT, *(token for (token,) in expected[:3])]])
    torch.testing.assert_close(logits[2], model(text)[:, -1], rtol=1e-4, atol=1e-4)

    monkeypatch.setattr(ahead, "_compile", never)  # from here on it is loaded
    other = random_model(**choices)  # the code contains no weights
    assert [*generate(model, [PROMPT], **options)] == expected
    assert [*generate(model, [PROMPT], **{**options, "tokens": 3})] == expected[:3]
    count = len(logits)
    loaded = [*generate(other, [PROMPT], **options)]
    assert len(logits) >= count + 20
    monkeypatch.setattr(module, "LOADS_FROM", 10**9)
    assert [*generate(other, [PROMPT], **options)] == loaded
    monkeypatch.setattr(module, "LOADS_FROM", 0)
    # Two models of one shape share the file, which is loaded once.
    pairs = zip(*(generate(m, [PROMPT], **options) for m in (model, other)), strict=True)
    assert [*pairs] == [*zip(expected, loaded, strict=True)]
    assert len(ahead._loaded) == before + 1

    monkeypatch.setattr(module, "LOADS_FROM", 0)
    steps = generate(model, [PROMPT], **options)
    first = [next(steps) for _ in range(3)]
    with headway.trace("blocks.0.attention.weights") as traced:
        first.append(next(steps))
    assert traced["blocks.0.attention.weights"].shape[0] == 1
    assert [*first, *steps] == expected
