"""Writing side by side is writing alone, and the cache never copies itself."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import headway
from gpts import MODERN, gpt_config
from headway.attention.masks import window
from headway.attention.positions import Rotary
from headway.attention.spec import Spec
from headway.ladder.rungs import LADDER
from headway.models.sampling import Sampling
from headway.torch import GPT
from headway.torch import generate as module
from headway.torch.decode import Decoder, LastTokens, is_supported
from headway.torch.generate import generate
from headway.torch.gpt import multi_head, of_rung
from headway.torch.layers import Cache

PROMPTS = [np.array(p) for p in ([3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [2, 7])]


def random_model(attention=multi_head, **choices):
    torch.manual_seed(0)
    model = GPT(gpt_config(27, 16, 16, 2, 4, **choices), attention).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


MODELS = {
    "gpt2": lambda: random_model(),
    "modern": lambda: random_model(kv_heads=2, **MODERN),
    "simplified": lambda: random_model(of_rung(LADDER["simplified"])),
    "fixed": lambda: random_model(of_rung(LADDER["fixed"])),
    "tiled": lambda: random_model(of_rung(LADDER["tiled"])),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_each_of_several_prompts_is_written_on_as_if_alone(make):
    """Past the context too, where each text forgets at a step of its own."""
    model = make()
    together = list(zip(*generate(model, PROMPTS, tokens=40, top_p=0.9, seed=3), strict=True))
    for prompt, result in zip(PROMPTS, together, strict=True):
        alone = [token for (token,) in generate(model, [prompt], tokens=40, top_p=0.9, seed=3)]
        assert list(result) == alone
    assert len({token for text in together for token in text}) > 5


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_padding_at_the_left_changes_no_logits(make):
    model, text = make(), torch.arange(7)
    padded = torch.cat([torch.tensor([5, 5, 5]), text])[None]
    with torch.no_grad():
        complete = model(text[None])
        result = model(padded, starts=torch.tensor([3]))[:, 3:]
    torch.testing.assert_close(result, complete, rtol=1e-10, atol=1e-10)


def test_the_cache_never_copies_itself_as_it_grows(monkeypatch):
    places, extend = {}, Cache.extend

    def watched(self, keys, values):
        result = extend(self, keys, values)
        assert result[0].shape[-2] == self.length
        places.setdefault(id(self), set()).add((result[0].data_ptr(), result[1].data_ptr()))
        return result

    monkeypatch.setattr(Cache, "extend", watched)
    list(generate(random_model(), PROMPTS[:1], tokens=11))
    assert [len(seen) for seen in places.values()] == [1, 1]  # two layers


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"kv_heads": 2, **MODERN},
        {"positions": "alibi"},
        {"positions": "relative"},
        {"window": 5, **MODERN},
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 0.9, "seed": 3}])
def test_steps_of_fixed_shapes_generate_the_same(choices, options, monkeypatch):
    """What a GPU runs as one graph, here without a graph; also past the context."""
    model = random_model(**choices)
    expected = [*generate(model, PROMPTS, tokens=40, **options)]
    monkeypatch.setattr(module, "_last_tokens", lambda model, *_: LastTokens(model))
    steps = []
    compute = Decoder._compute
    monkeypatch.setattr(Decoder, "_compute", lambda self: steps.append(self) or compute(self))
    assert [*generate(model, PROMPTS, tokens=40, **options)] == expected
    assert len(steps) >= 20  # the other steps read the texts again
    copy = steps[0]._run.func.model
    assert model.blocks[0].attention.attend is not copy.blocks[0].attention.attend
    assert model.embedding.weight is copy.embedding.weight


class Copies(TorchFunctionMode):
    """Records the functions that copy numbers of Python to a device."""

    def __init__(self):
        self.calls = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        creates = function in (torch.asarray, torch.as_tensor, torch.tensor, torch.from_numpy)
        if creates and not isinstance(arguments[0], torch.Tensor):
            self.calls.append((function.__name__, arguments))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("how", [Sampling(0.0), Sampling(top_k=9), Sampling(top_p=0.9)])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"kv_heads": 2, **MODERN},
        {"positions": "alibi"},
        {"positions": "relative"},
        {"window": 5, **MODERN},
    ],
    ids=str,
)
def test_a_step_of_fixed_shapes_can_be_captured(choices, how):
    """A CUDA graph must not wait for the GPU, nor copy from the CPU.

    The device `meta` takes the place of the GPU: it computes shapes only, so that reading a number
    is an error.
    """
    model = random_model(**choices).to("meta")
    caches = model.caches(12, torch.zeros(3, dtype=torch.int64, device="meta"))
    kv_heads = model.config.attention.groups
    for cache in caches:
        cache.extend(*torch.zeros(2, 3, kv_heads, 5, 4, dtype=torch.float64, device="meta"))
    assert is_supported(model)
    prompt_seeds = torch.zeros(3, dtype=torch.int32, device="meta")
    decoder = Decoder(LastTokens(model), caches, prompt_seeds, how)
    with torch.no_grad(), Copies() as copies:
        decoder._compute()
    assert decoder._outputs.shape == (4,)
    assert not copies.calls


@pytest.mark.parametrize("choices", [{}, {"kv_heads": 2, **MODERN}], ids=str)
def test_dropout_does_not_wait_for_the_device(choices):
    """To copy a number of Python to a GPU waits for the GPU."""
    model = random_model(dropout=0.2, **choices).to("meta").train()
    with Copies() as copies:
        model(torch.zeros(3, 5, dtype=torch.int64, device="meta"), Spec(seed=(3, 7)))
    assert not copies.calls


def test_layers_with_masks_of_their_own_are_not_captured():
    model = random_model()
    assert is_supported(model)
    model.blocks[1].attention.spec = Spec(mask=window(2))
    assert not is_supported(model)


def test_starts_belong_to_the_caches():
    model = random_model()
    with pytest.raises(ValueError, match=r"pass starts to model.caches\(...\)"):
        model(torch.ones(1, 3).long(), caches=model.caches(), starts=torch.tensor([1]))


def test_a_decoder_is_freed_without_the_garbage_collector(monkeypatch):
    monkeypatch.setattr(module, "_last_tokens", lambda model, *_: LastTokens(model))
    decoders = weakref.WeakSet()
    create = Decoder.__init__
    monkeypatch.setattr(
        Decoder, "__init__", lambda self, *a: decoders.add(self) or create(self, *a)
    )
    gc.disable()
    try:
        list(generate(random_model(), PROMPTS, tokens=3))
        assert not decoders
    finally:
        gc.enable()


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_small_model_reads_each_new_token_with_one_thread(limit, monkeypatch):
    monkeypatch.setattr(module, "SMALL", limit)
    threads, forward = [], GPT.forward
    monkeypatch.setattr(
        GPT, "forward", lambda *a, **o: threads.append(torch.get_num_threads()) or forward(*a, **o)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in generate(random_model(), PROMPTS[:1], tokens=4):
            assert torch.get_num_threads() == 2
        assert threads == ([2, 1, 1, 1] if limit else [2, 2, 2, 2])
    finally:
        torch.set_num_threads(before)


def test_wide_heads_and_a_rotary_of_one_layer():
    model = random_model(d_k=20, **MODERN)
    tokens = torch.arange(7)[None]
    usual = model(tokens)
    model.blocks[1].attention.rotary = Rotary(theta=10.0)
    assert not torch.allclose(model(tokens), usual)


def test_a_trace_sees_steps_that_a_graph_would_hide(monkeypatch):
    model = random_model()
    expected = [*generate(model, PROMPTS, tokens=6, temperature=0)]
    monkeypatch.setattr(module, "_last_tokens", lambda model, *_: LastTokens(model))
    steps = generate(model, PROMPTS, tokens=6, temperature=0)
    first = [next(steps) for _ in range(3)]
    with headway.trace("blocks.0.attention.weights") as traced:
        first.append(next(steps))
    assert traced["blocks.0.attention.weights"].shape[0] == len(PROMPTS)
    assert [*first, *steps] == expected


def test_weights_that_are_not_finite_are_an_error():
    model = random_model()
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[0] = float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        next(generate(model, PROMPTS, tokens=1))


def test_an_empty_prompt_among_others_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        next(generate(random_model(), [PROMPTS[0], PROMPTS[0][:0]], tokens=1))
