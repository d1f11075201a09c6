"""Counts of operations and bytes, against the profiler and real tensors."""

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gpts import PRESETS, gpt_config
from headway.attention import dispatch
from headway.models.gpt import MLP_KINDS, shapes
from headway.plan import counts, published
from headway.plan.counts import Work
from headway.torch import GPT
from headway.torch.gpt import multi_head
from headway.torch.layers import rotation_of
from headway.torch.loss import linear_cross_entropy
from headway.training import muon

# Sizes that tell the axes apart: no two are equal, and none is the product of two others.
VOCABULARY, TOKENS, WIDTH, LAYERS, HEADS, ROWS = 37, 13, 24, 2, 4, 3
KINDS = {**PRESETS, "window": {"window": 5}, "no tie": {"tied": False, "d_mlp": 31}}
PLAIN = partial(multi_head, attend=partial(dispatch.run, kernel="plain"))


def config_of(kind):
    return gpt_config(VOCABULARY, TOKENS, WIDTH, LAYERS, HEADS, **KINDS[kind])


def loss_of(model, tokens):
    features = model.features(tokens).flatten(0, 1)
    return linear_cross_entropy(features, model.head.weight, tokens.flatten())


def operations(model, rows=ROWS, tokens=TOKENS):
    tokens = torch.zeros(rows, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss_of(model, tokens).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_model(kind):
    config = config_of(kind)
    with torch.device("meta"):
        named = dict(GPT(config, seed=None).named_parameters())
    found = counts.parameters(config)
    assert found.total == sum(p.numel() for p in named.values())
    assert found.blocks == sum(p.numel() for n, p in named.items() if n.startswith("blocks"))
    assert found.head == sum(p.numel() for n, p in named.items() if n.startswith("head"))
    matrices = [p for n, p in named.items() if muon.is_matrix(n, p.ndim)]
    assert found.matrices == sum(p.numel() for p in matrices)


def test_parameters_are_those_that_others_publish():
    """NumParams in the tables of LLM Foundry for 2,048 and 8,192 tokens; the Llama 3 paper."""
    expected = {
        ("125m", 2048): 125311488, ("350m", 2048): 355985408, ("760m", 2048): 760470528,
        ("1b", 2048): 1315950592, ("3b", 2048): 2651837440, ("7b", 2048): 6658859008,
        ("13b", 2048): 12853954560, ("30b", 2048): 29975214080, ("70b", 2048): 64862437376,
        ("1b", 8192): 1328533504, ("30b", 8192): 30019254272,
    }  # fmt: skip
    for (name, tokens), number in expected.items():
        assert counts.parameters(published.mpt(name, tokens)).total == number
    assert counts.parameters(published.llama("Llama 3.1 8B", 8192)).total == 8_030_261_248


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_the_profiler_counts(kind):
    config = config_of(kind)
    model = GPT(config, PLAIN)
    counted = counts.profiled(Work(config, TOKENS, ROWS), attention_backward=2)
    assert counted.total == operations(model)
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    again = counts.profiled(Work(config, TOKENS, ROWS, recomputed=1.0), attention_backward=2)
    assert again.total == operations(model)
    assert again.head == counted.head


def test_flash_attention_computes_the_scores_twice():
    """PyTorch's count for its kernel, on tensors without values."""
    shape = (ROWS, HEADS, TOKENS, 8)
    with torch.device("meta"):
        arrays = [torch.empty(shape, dtype=torch.bfloat16) for _ in range(4)]
        seeds = [torch.empty((), dtype=torch.int64) for _ in range(2)]
        sums = torch.empty(shape[:3])
    flash = torch.ops.aten._scaled_dot_product_flash_attention_backward
    with FlopCounterMode(display=False) as counter:
        flash(
            arrays[3], *arrays[:3], arrays[3], sums, None, None, TOKENS, TOKENS, 0.0, True, *seeds
        )
    config = gpt_config(VOCABULARY, TOKENS, WIDTH, LAYERS, HEADS, d_k=8)
    forward = counts.attention_operations(config, TOKENS**2)
    assert counter.get_total_flops() == 2.5 * ROWS * forward


def test_operations_grow_with_each_axis():
    """Each size changes the counts as it changes those of the profiler."""

    @settings(max_examples=8, deadline=None)
    @given(
        st.integers(1, 3), st.integers(2, 9), st.integers(1, 2), st.sampled_from([8, 12, 20]),
        st.sampled_from(["gpt2", "modern", "llama"]), st.integers(5, 30),
    )  # fmt: skip
    def check(rows, tokens, layers, width, kind, vocabulary):
        config = gpt_config(vocabulary, 9, width, layers, 2, **{**PRESETS[kind], "kv_heads": 1})
        work = Work(config, tokens, rows)
        counted = counts.profiled(work, attention_backward=2)
        assert counted.total == operations(GPT(config, PLAIN), rows, tokens)
        three = counts.profiled(replace(work, micro_batches=3), attention_backward=2)
        assert three.total == 3 * counted.total

    check()


@pytest.mark.parametrize("kind", ["gpt2", "modern", "untied grouped gpt2"])
def test_operations_of_muon(kind):
    config = config_of(kind)
    matrices = {n: torch.ones(s) for n, s in shapes(config).items() if muon.is_matrix(n, len(s))}
    with FlopCounterMode(display=False) as counter:
        muon.updates(matrices)
    assert counter.get_total_flops() == counts.parameters(config).muon


@pytest.mark.parametrize("tokens", [1, 7, 13])
@pytest.mark.parametrize("seen", [None, 1, 5, 13, 20])
def test_cells_are_those_that_the_mask_allows(tokens, seen):
    config = gpt_config(VOCABULARY, TOKENS, WIDTH, LAYERS, HEADS, window=seen)
    apart = np.arange(tokens)[:, None] - np.arange(tokens)
    allowed = (apart >= 0) & (apart < (seen or tokens))
    assert counts.cells(config, tokens, tile=1) == allowed.sum()
    assert allowed.sum() <= counts.cells(config, tokens) <= tokens**2


def kept(config, dtype):
    """The storages that a block keeps for the backward pass, without its parameters."""
    model = GPT(config).to(dtype)
    x = torch.randn(ROWS, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages, rotation = {}, {}
    if config.positions.kind == "rotary":
        at = torch.arange(TOKENS)
        cos_sin = rotation_of(config.positions.rotary, config.d_k, at, None, TOKENS, x)
        rotation = {"rotation": cos_sin}
        parameters |= {part.untyped_storage().data_ptr() for part in cos_sin}  # of all blocks

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.blocks[0](x, **rotation)
    return sum(nbytes for nbytes, _ in storages.values()), output


def remainder(config, dtype):
    """What PyTorch keeps on a CPU beyond a GPU, where kernels differ, in bytes.

    RMSNorm is not fused: it keeps x / rms(x), and in bfloat16 both in float32. In bfloat16,
    attention runs in float32, so its four tensors are twice as large and the merged context is a
    copy; the statistics of LayerNorm are bfloat16 instead of float32.
    """
    attention, tokens, size = config.attention, ROWS * TOKENS, dtype.itemsize
    d_q, d_kv = attention.heads * config.d_k, attention.groups * config.d_k
    has_half, more = size == 2, 0
    if config.norm.kind == "rms":  # of the stream, twice
        more += 2 * (4 + (4 - size)) * WIDTH
    elif has_half:
        more -= 2 * 2 * 2
    if attention.qk_norm:
        more += (4 + (4 - size)) * (d_q + d_kv)
    if has_half:
        more += 2 * (2 * d_q + 2 * d_kv)
        if not (attention.qk_norm or config.positions.kind == "rotary"):
            more += 2 * d_q
    return tokens * more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kind", ["gpt2", "modern", "llama", "untied grouped gpt2", "no positions", "wide heads"]
)
def test_a_block_keeps_what_autograd_keeps(kind, dtype):
    config = config_of(kind)
    counted = ROWS * sum(counts.saved(config, TOKENS, dtype.itemsize).values())
    assert counted + remainder(config, dtype) == kept(config, dtype)[0]


@pytest.mark.parametrize("mlp", MLP_KINDS)
def test_what_each_mlp_keeps(mlp):
    config = gpt_config(VOCABULARY, TOKENS, WIDTH, LAYERS, HEADS, mlp=mlp, d_mlp=31)
    counted = ROWS * sum(counts.saved(config, TOKENS, 4).values())
    assert counted == kept(config, torch.float32)[0]


def test_optimizer_numbers():
    config = config_of("modern")
    sizes = {name: prod(shape) for name, shape in shapes(config).items()}
    matrices = sum(
        n for name, n in sizes.items() if muon.is_matrix(name, len(shapes(config)[name]))
    )
    assert counts.optimizer_numbers(config, with_muon=False) == 2 * sum(sizes.values())
    assert counts.optimizer_numbers(config, with_muon=True) == 2 * sum(sizes.values()) - matrices
