"""The time of a step: each part from its limit, and communication next to the computation."""

from dataclasses import replace

import pytest

from headway.plan.cards import CARDS, HOP, NETWORK_HOP, START, Card, Cluster, Efficiency
from headway.plan.counts import (
    Work,
    block_products,
    block_traffic,
    head_products,
    loss_traffic,
    parameters,
)
from headway.plan.published import gpt2, llama
from headway.plan.seconds import Averaging, collective, seconds

CARD = Card(
    "test", "hopper", peak=1e15, memory=8e10, bandwidth=1e12, link=1e11, network=1e10, source=""
)
ALL = Efficiency(products=1.0, attention=1.0, memory=1.0, links=1.0, network=1.0)
WORK = Work(gpt2("124M"), 1024, 4)
LLAMA = Work(llama("Llama 3.1 8B", 8192), 8192, 1)


def test_each_part_has_its_limit():
    times = seconds(WORK, Cluster(CARD), ALL)
    products = 3 * 4096 * (12 * block_products(WORK.model) + head_products(WORK.model))
    assert times.products == pytest.approx(products / 1e15)
    cells = 1024 * (1024 + 128) / 2  # whole tiles of 128 keys
    operations = 3.5 * 12 * 4 * 4 * 12 * 64 * cells
    assert times.attention == pytest.approx(operations / 1e15 / (64 / 128))
    assert times.exposed == 0
    assert times.total == sum(
        (times.products, times.attention, times.memory, times.update, times.exposed)
    )


@pytest.mark.parametrize("name", ["products", "attention", "memory"])
def test_half_an_efficiency_doubles_its_part(name):
    one = seconds(WORK, Cluster(CARD), ALL)
    two = seconds(WORK, Cluster(CARD), replace(ALL, **{name: 0.5}))
    assert getattr(two, name) == pytest.approx(2 * getattr(one, name))
    changed = {"memory", "update"} if name == "memory" else {name}
    for other in {"products", "attention", "memory", "update"} - changed:
        assert getattr(two, other) == getattr(one, other)


def test_micro_batches_and_checkpointing():
    one = seconds(WORK, Cluster(CARD), ALL)
    three = seconds(replace(WORK, micro_batches=3), Cluster(CARD), ALL)
    assert three.products == pytest.approx(3 * one.products)
    assert three.update < 3 * one.update
    again = seconds(replace(WORK, recomputed=1.0), Cluster(CARD), ALL)
    assert (
        one.products < again.products < 4 / 3 * one.products
    )  # not the head, nor the last product
    assert again.attention == pytest.approx(4.5 / 3.5 * one.attention)
    assert again.update == one.update


def test_fused_kernels_move_fewer_bytes():
    for kind in ("gpt2", "modern"):
        config = gpt2("124M", kind)
        assert block_traffic(config, 2, compiled=True) < block_traffic(config, 2, compiled=False)
        assert block_traffic(config, 4, compiled=True) == 2 * block_traffic(
            config, 2, compiled=True
        )


def test_a_collective_in_a_node_and_between_nodes():
    inside = collective(8e9, Cluster(CARD, 8, 8), ALL)
    assert inside == pytest.approx(START + 8e9 * 7 / 8 / 1e11 + 7 * HOP)
    # Two nodes: half of the bytes enter each node through eight cards of 1e10 bytes/s.
    both = collective(8e9, Cluster(CARD, 16, 8), ALL)
    assert both == pytest.approx(
        START + max(8e9 * 15 / 16 / 1e11, 4e9 / 8e10) + 14 * HOP + 2 * NETWORK_HOP
    )
    slow = replace(CARD, network=1e9)
    assert collective(8e9, Cluster(slow, 16, 8), ALL) == pytest.approx(
        START + 4e9 / 8e9 + 14 * HOP + 2 * NETWORK_HOP
    )
    assert collective(8e9, Cluster(CARD), ALL) == 0


def test_communication_is_hidden_by_enough_computation():
    def exposed(link, rows=1):
        cluster = Cluster(replace(CARD, link=link), 8, 8)
        return seconds(replace(LLAMA, rows=rows), cluster, ALL).exposed

    fast, slow = exposed(1e12), exposed(2e10)
    ends = seconds(LLAMA, Cluster(replace(CARD, link=1e12), 8, 8), ALL)
    assert fast < 0.02 * ends.total  # only the first and the last collective
    assert slow > 20 * fast
    assert exposed(2e10, rows=8) < slow


def test_the_exposed_time_of_a_slow_link_is_that_of_its_bytes():
    """With a link so slow that computation does not matter, every byte counts: the parameters
    twice in bfloat16, but those of the root once, and the gradients once in float32."""
    cluster = Cluster(replace(CARD, link=1e6), 8, 8)
    count = parameters(LLAMA.model)
    root = count.embedding + count.head
    moved = (2 + 4) * root + (2 + 2 + 4) * count.blocks + 2 * count.blocks / 32  # the first block
    times = seconds(LLAMA, cluster, ALL)
    assert times.exposed == pytest.approx(moved * 7 / 8 / 1e6, rel=0.001)


@pytest.mark.parametrize("recomputed", [0.0, 1.0])
def test_exposed_is_what_the_blocks_do_not_hide(recomputed):
    """With a link that is too slow for every block, computation hides as much as it lasts."""
    work = replace(LLAMA, recomputed=recomputed)
    cluster = Cluster(replace(CARD, link=5e9), 8, 8)
    count = parameters(work.model)
    root, block = count.embedding + count.head, count.blocks / 32
    moved = [2 * root, 4 * root, 2 * block, *[2 * block, 2 * block, 4 * block] * 32]
    times = seconds(work, cluster, ALL)
    tokens, config = work.tokens, work.model
    head = 3 * tokens * head_products(config) / CARD.peak
    loss = tokens * loss_traffic(config, 2, compiled=True) / CARD.bandwidth
    hidden = times.products - head + times.attention + times.memory - loss
    total = sum(collective(nbytes, cluster, ALL) for nbytes in moved)
    assert times.exposed == pytest.approx(total - hidden)


def test_gradients_are_averaged_once_per_step_or_each_time():
    cluster = Cluster(replace(CARD, link=1e6), 8, 8)
    work = replace(LLAMA, micro_batches=4)
    once = seconds(work, cluster, ALL).exposed
    each = seconds(work, cluster, ALL, Averaging(is_each=True)).exposed
    assert each - once == pytest.approx(
        3 * 4 * parameters(work.model).total * 7 / 8 / 1e6, rel=0.001
    )
    none = seconds(work, cluster, ALL, Averaging("none")).exposed
    assert none == pytest.approx(2 * 4 * parameters(work.model).total * 7 / 8 / 1e6, rel=0.01)


def test_latency_grows_with_the_number_of_gpus():
    """Past some number of GPUs, the ring's hops take longer than a block."""
    hopper = CARDS["h100"]

    def share(gpus):
        times = seconds(replace(LLAMA, tokens=2048), Cluster(hopper, gpus), ALL)
        return times.exposed / times.total

    assert share(8) < share(256) < share(1024) < share(4096)
