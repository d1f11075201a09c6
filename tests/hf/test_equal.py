"""Models of `transformers`, loaded from their folder, give the same logits in both engines."""

import array_api_compat.torch  # noqa: F401 - its tables are made before float32 is replaced
import numpy as np
import pytest
import torch

import headway
from families import VARIANTS, their_model
from headway.engines import engine_named

TEXT = np.random.default_rng(0).integers(3, 41, (2, 40))  # longer than 16, the original length


@pytest.fixture(params=VARIANTS)
def saved(request, tmp_path):
    """A model of transformers in float32, and its folder."""
    theirs = their_model(*VARIANTS[request.param])
    theirs.save_pretrained(tmp_path)
    return theirs, tmp_path


@pytest.fixture
def exact(monkeypatch):
    """Make the casts to float32 inside of transformers casts to float64."""
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(FLOAT32)


FLOAT32 = torch.float32


def closeness(ours, theirs):
    """The largest difference relative to the largest logit."""
    ours, theirs = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    return abs(ours - theirs).max() / abs(theirs).max()


def test_float32(saved):
    theirs, folder = saved
    with torch.no_grad():
        expected = theirs(torch.tensor(TEXT)).logits
        output = headway.load(folder, device="cpu").model(torch.tensor(TEXT))
    assert output.dtype == FLOAT32
    assert closeness(output, expected) < 1e-5


@pytest.mark.parametrize("saved", ["gpt2", "llama dynamic", "bert"], indirect=True)
def test_float32_in_jax(saved):
    theirs, folder = saved
    with torch.no_grad():
        expected = theirs(torch.tensor(TEXT)).logits
    assert closeness(headway.load(folder, "jax").model(TEXT), expected) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_float64(name, exact, tmp_path):
    theirs = their_model(*VARIANTS[name])
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(TEXT)).logits
        output = headway.load(tmp_path, device="cpu").model(torch.tensor(TEXT))
    assert output.dtype == torch.float64
    assert closeness(output, expected) < 1e-10
    assert closeness(headway.load(tmp_path, "jax").model(TEXT), expected) < 1e-10


# Of the variants that read a text in the same way, `make test` generates with one.
QUICK = ("gpt2", "llama grouped, wide heads, theta, eps, tied", "llama dynamic", "llama yarn")
QUICK += ("mistral with a window", "qwen2 with windows", "qwen3")
CAUSAL = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, (kind, _) in VARIANTS.items()
    if kind != "bert"
]
LENGTHS = (25, 18)  # of two prompts, which form one batch


@pytest.mark.parametrize("saved", CAUSAL, indirect=True)
def test_a_left_padded_batch(saved):
    theirs, folder = saved
    model = headway.load(folder, device="cpu").model
    tokens, starts = torch.tensor(TEXT[:, : LENGTHS[0]]), LENGTHS[0] - torch.tensor(LENGTHS)
    is_text = torch.arange(LENGTHS[0]) >= starts[:, None]
    places = {"attention_mask": is_text.long(), "position_ids": (is_text.cumsum(-1) - 1).clamp(0)}
    with torch.no_grad():
        expected = theirs(tokens, **places).logits
        output = model(tokens, starts=starts)
    assert closeness(output[is_text], expected[is_text]) < 1e-5


@pytest.mark.parametrize("saved", CAUSAL, indirect=True)
def test_the_same_greedy_text_with_caches_and_padding(saved):
    theirs, folder = saved
    prompts = [TEXT[row, :length] for row, length in enumerate(LENGTHS)]
    padded = torch.tensor([[0] * (LENGTHS[0] - len(prompt)) + [*prompt] for prompt in prompts])
    theirs.generation_config.eos_token_id = None
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    output = theirs.generate(padded, attention_mask=(padded > 0).long(), **options)
    expected = output[:, LENGTHS[0] :].T.tolist()
    for name in ("torch", "jax"):
        model = headway.load(folder, name).model
        assert [*engine_named(name).generate(model, prompts, tokens=12, temperature=0)] == expected


@pytest.mark.parametrize("saved", CAUSAL, indirect=True)
def test_caches(saved):
    _, folder = saved
    model = headway.load(folder, device="cpu").model
    tokens, caches = torch.tensor(TEXT[:, :16]), model.caches()
    with torch.no_grad():
        parts = [model(part, caches=caches) for part in tokens.split([9, 1, 6], dim=1)]
        assert closeness(torch.cat(parts, 1), model(tokens)) < 1e-5
