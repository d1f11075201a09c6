"""Calibrate a plan on this machine: the speed of products, attention and memory, in a minute."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from headway.attention import dispatch
from headway.attention.spec import Spec
from headway.models.gpt import attention_spec
from headway.models.parameters import Shape
from headway.plan.cards import CARDS, Card, Efficiency
from headway.plan.counts import (
    Work,
    attention_operations,
    block_matrices,
    block_products,
    block_traffic,
    cells,
)
from headway.torch import devices
from headway.torch.gpt import Block, multi_head
from headway.torch.layers import rotation_of
from headway.training import speed

ROUNDS = 5
CPU_OPERATIONS = 2e10  # of one block: on a CPU fewer tokens are measured
Run = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """This machine's device as a card, and the fractions of its limits that it reaches.

    milliseconds: of one block forward and backward, of its products and of its attention.
    """

    card: Card
    efficiency: Efficiency
    milliseconds: dict[str, float]


def measure(work: Work, device: torch.device) -> Measured:
    """Measure one block of the model: its matrix products, its attention, and all of it.

    The rest of the block's time is that of kernels that wait for memory.
    """
    work = _smaller(work) if device.type == "cpu" else work
    dtype = torch.bfloat16 if work.itemsize == 2 else torch.float32
    card = _card(device, dtype)
    config, tokens = work.model, work.tokens_at_once
    matrices = [_product(tokens, shape, device, dtype) for shape in block_matrices(config)]
    products = _median(matrices, device)
    attention = _median([_attention(work, device, dtype)], device)
    block = _median([_block(work, device, dtype)], device)
    rest = max(block - products - attention, 0.0)
    scores = work.rows * attention_operations(config, cells(config, work.tokens))
    width = config.d_k / (config.d_k + 64)
    traffic = tokens * block_traffic(config, work.itemsize, work.compiled) / card.bandwidth
    efficiency = Efficiency(
        products=3 * tokens * block_products(config) / products / card.peak,
        attention=3.5 * scores / attention / card.peak / width,
        memory=traffic / max(rest, traffic),
    )
    times = {"block": block, "products": products, "attention": attention}
    return Measured(card, efficiency, {name: 1000 * s for name, s in times.items()})


def _smaller(work: Work) -> Work:
    """The same work with fewer tokens, for a slow device."""
    count = int(CPU_OPERATIONS / block_products(work.model))
    tokens = max(16, min(work.tokens, count))
    return replace(work, tokens=tokens, rows=max(1, min(work.rows, count // tokens)))


def _card(device: torch.device, dtype: torch.dtype) -> Card:
    """The device: a known card, or one whose limits are measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        total = float(torch.cuda.get_device_properties(device).total_memory)
        for card in CARDS.values():  # "NVIDIA H200" and "NVIDIA H200 SXM 141 GB"
            words = card.title.split()
            if words[1] in name and abs(card.memory / total - 1) < 0.1:
                return replace(card, memory=total)
    else:
        name = device.type
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    peak = speed.peak(partial(_square, device, dtype), device.type)
    count = 2**28 if device.type == "cuda" else 2**24
    source, target = torch.empty(2, count, device=device).unbind()
    seconds = _median([lambda: target.copy_(source)], device)
    bandwidth = 2 * 4 * count / seconds
    return Card(name, "measured", peak, total, bandwidth, 32e9, 3e9, "measured on this machine")


def _square(device: torch.device, dtype: torch.dtype, size: int) -> Run:
    """The product of two square matrices, for `speed.peak`."""
    one, other = torch.ones(2, size, size, device=device, dtype=dtype).unbind()
    return lambda: (one @ other)[0, 0].item()


def _product(tokens: int, shape: Shape, device: torch.device, dtype: torch.dtype) -> Run:
    """The three products of a linear layer: output, and gradients of input and matrix."""
    d_out, d_in = shape
    weight = torch.randn(d_out, d_in, device=device, dtype=dtype)
    x = torch.randn(tokens, d_in, device=device, dtype=dtype)
    gradient = torch.randn(tokens, d_out, device=device, dtype=dtype)
    return lambda: (x @ weight.mT, gradient @ weight, gradient.mT @ x)


def _attention(work: Work, device: torch.device, dtype: torch.dtype) -> Run:
    """Attention forward and backward."""
    config = work.model

    def array(heads: int) -> Tensor:
        shape = (work.rows, heads, work.tokens, config.d_k)
        return torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    groups, spec = config.attention.groups, attention_spec(config)._replace(dropout=0.0)
    queries, keys, values = array(config.attention.heads), array(groups), array(groups)

    def run() -> object:
        output: Tensor = dispatch.run(queries, keys, values, spec)
        return torch.autograd.grad(output.sum(), (queries, keys, values))

    return run


def _block(work: Work, device: torch.device, dtype: torch.dtype) -> Run:
    """A block forward and backward."""
    config = work.model
    with device:
        block = Block(config, multi_head).to(dtype)
    x = torch.randn(work.rows, work.tokens, config.width, device=device, dtype=dtype)
    x.requires_grad_()
    arguments: dict[str, Any] = {}
    if config.positions.kind == "rotary":
        positions = torch.arange(work.tokens, device=device)
        rotary = config.positions.rotary
        arguments["rotation"] = rotation_of(rotary, config.d_k, positions, None, work.tokens, x)

    def summed(x: Tensor) -> Tensor:
        output: Tensor = block(x, Spec(seed=(0, 0)), **arguments)
        return output.sum()

    call = devices.compiled(summed) if work.compiled else summed
    return lambda: torch.autograd.grad(call(x), [x, *block.parameters()])


def _median(runs: list[Run], device: torch.device) -> float:
    """The median time of all runs together; the first time does not count."""
    seconds = []
    for _ in range(ROUNDS + 1):
        _wait(device)
        began = time.perf_counter()
        for run in runs:
            run()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
