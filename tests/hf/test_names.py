"""Tests of the conversion of parameters to and from Hugging Face's names: the logits are equal."""

import pytest
import torch
import transformers

from gpts import MODERN, gpt_config
from headway.hf import names
from headway.torch import GPT

SIZES = {"vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**MODERN, "eps": 1e-6, "tied": False, "d_mlp": 40}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 40, "head_dim": 6}
SHORT = {"max_position_embeddings": 16}


def gpt2():
    config = transformers.GPT2Config(vocab_size=30, n_positions=16, n_embd=24, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config), {}, names.GPT2


def llama():
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **SHORT))
    return theirs, {**LLAMA, "kv_heads": 2, "qk_norm": False}, names.LLAMA


def qwen3():
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, **SHORT))
    return theirs, {**LLAMA, "kv_heads": 2}, names.LLAMA


@pytest.mark.parametrize("family", [gpt2, llama, qwen3])
def test_converted_weights_give_the_same_logits_and_convert_back(family):
    torch.manual_seed(0)
    theirs, choices, table = family()
    theirs = theirs.eval().double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    ours = GPT(gpt_config(30, 16, 24, 2, 4, **choices)).eval().double()
    state = theirs.state_dict()
    ours.load_state_dict(names.from_hf(table, state))
    tokens = torch.randint(0, 30, (2, 11))
    with torch.no_grad():
        expected = theirs(tokens).logits
        bound = 1e-10 if family is gpt2 else 1e-5  # their rotation has cosines in float32
        assert torch.allclose(ours(tokens), expected, rtol=0, atol=bound)
    assert expected.abs().max() > 1
    back = names.to_hf(table, ours.state_dict())
    assert back.keys() == {name for name in state if "rotary" not in name}
    assert all(torch.equal(back[name], state[name]) for name in back)


def test_a_parameter_without_equivalent_is_named():
    model = GPT(gpt_config(30, 16, 24, 1, 4, positions="relative"))
    with pytest.raises(
        ValueError, match=r"blocks\.0\.attention\.position_bias\.table' has no equivalent"
    ):
        names.to_hf(names.GPT2, model.state_dict())
