"""Writing side by side is writing alone, and the cache never copies itself."""

import numpy as np
import pytest
import torch

from gpts import MODERN, gpt_config
from headway.ladder.rungs import LADDER
from headway.torch import GPT
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


def test_an_empty_prompt_among_others_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        next(generate(random_model(), [PROMPTS[0], PROMPTS[0][:0]], tokens=1))
