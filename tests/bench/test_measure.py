"""Rounds and memory."""

import random
import time
from dataclasses import replace

import pytest
import torch

from headway.attention.masks import materialize
from headway.attention.spec import Spec
from headway.bench import executed, measure
from headway.bench.measure import Workload, alternate, peak_memory, ratios
from headway.bench.settings import Setting


def test_every_side_runs_once_a_round():
    calls = []
    workloads = {
        name: Workload(lambda name=name: calls.append(name) or time.sleep(0.003)) for name in "abc"
    }
    rounds = []
    result = alternate(
        workloads, seconds=1e-9, after=lambda result: rounds.append(len(result["a"]))
    )
    assert {len(item) for item in result.values()} == {measure.LEAST}
    assert rounds == [1, 2, 3]
    timed = calls[-3 * measure.LEAST :]
    chunks = [tuple(timed[start : start + 3]) for start in range(0, len(timed), 3)]
    assert all(sorted(chunk) == ["a", "b", "c"] for chunk in chunks)
    assert len(set(chunks)) > 1  # not always in the same order
    assert all(0.003 <= item < 1 for item in result["a"])


def test_rounds_end_with_the_seconds_and_with_the_yardstick():
    workloads = {"fast": Workload(lambda: None), "slow": Workload(lambda: time.sleep(0.1))}
    alone = alternate(workloads, seconds=0.4)  # the fast workload needs a quarter of it
    assert len(alone["fast"]) == measure.MOST
    assert measure.LEAST <= len(alone["slow"]) <= 5
    held = alternate(workloads, seconds=0.4, baseline="slow")
    assert len(held["fast"]) == len(held["slow"]) <= 5


def test_short_calls_are_repeated_until_the_clock_can_tell():
    calls = []
    result = alternate({"short": Workload(lambda: calls.append(1))}, seconds=1e-9)
    assert len(calls) > 100
    assert max(result["short"]) < measure.SHORTEST


def test_the_clock_waits_for_what_was_begun():
    pending = []

    def finish():
        time.sleep(0.01 * len(pending))
        pending.clear()

    assert Workload(lambda: pending.append(1), finish).seconds(times=2) >= 0.01


def test_speed_is_the_ratio_in_the_same_round():
    assert ratios([1.0, 2.0, 4.0], [2.0, 8.0]) == [2.0, 4.0]


@pytest.mark.parametrize("megabytes", [40, 100])
def test_memory_is_what_was_allocated(megabytes):
    def work():
        return torch.ones(megabytes * 250_000)  # float32

    peak_memory(work)  # the first call also loads code
    for _ in range(2):
        assert peak_memory(work) == pytest.approx(megabytes * 1e6, rel=0.03, abs=1e6)


def test_memory_is_the_most_at_a_time_though_the_heap_was_full_of_holes():
    generator = random.Random(0)
    kept = [torch.ones(generator.randrange(1, 200_000)) for _ in range(400)]
    del kept[::2]  # free again: what glibc keeps

    def work():
        for _ in range(3):
            torch.ones(7_500_000)  # 30 MB, and freed
        return torch.ones(5_000_000)

    assert peak_memory(work) == pytest.approx(30e6, rel=0.03)
    assert len(kept) == 200


def test_the_machine_has_peaks_and_memory():
    assert 1e8 < measure.peak_flops(torch.float32, size=256) < 1e16
    assert 1e7 < measure.bandwidth(size=2**22) < 1e14
    assert measure.memory("MemTotal") >= measure.memory() > 1e8


# What ran


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x @ x.mT

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_the_profiler_names_what_ran():
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    assert executed.by_torch(lambda: sdpa(x, x, x)) == ("flash (CPU)", False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert executed.by_torch(lambda: sdpa(x, x, x)).name == "math"
    assert executed.by_torch(lambda: Doubles.apply(x)).name == "Doubles"
    assert executed.by_torch(lambda: x @ x.mT + x[0, 0] @ x[0, 0].mT).name == "bmm + mm"
    assert executed.by_torch(lambda: x + x).name == "no known operation"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("flash_forward", True),
        ("_attn_fwd", True),
        ("triton_poi_fused_add_0", False),  # TorchInductor's
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x64x32", False),
        ("ampere_sgemm_128x64_tn", False),
        ("cutlass_80_tensorop_s1688gemm_128x128", False),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_TNN", False),
        ("void at::native::vectorized_elementwise_kernel<4>(int)", False),
    ],
)
def test_a_library_s_products_on_a_gpu_are_nobody_s_triton(name, wanted):
    assert executed.is_of_triton(name) == wanted


def test_the_compiled_program_names_what_ran():
    program = """
      %a = f32[2]{0} fusion(%b), kind=kLoop
      %c = f32[2]{0} dot(%a, %b)
      %d = f32[2]{0} custom-call(%c), custom_call_target="__cudnn$fmhaSoftmax"
      %e = f32[2]{0} dot(%a, %b)
    """
    assert executed.by_xla(program) == ("XLA: __cudnn$fmhaSoftmax + 2 dot + fused", True)


# Settings

SMALL = Setting(batch=2, tokens=7, heads=3, kv_heads=1, head_dim=5)


@pytest.mark.parametrize(
    "setting",
    [
        SMALL,
        replace(SMALL, causal=False),
        replace(SMALL, window=3),
        replace(SMALL, window=3, causal=False),
        replace(SMALL, window=50),
    ],
)
def test_the_cells_that_count_are_those_that_the_mask_allows(setting):
    one = torch.zeros(1, 7, 5)
    counted = 49 if setting.mask is None else int(materialize(one, one, Spec(setting.mask)).sum())
    assert setting.cells == counted


def test_operations_and_bytes_counted_by_hand():
    setting = Setting(2, 7, 3, 1, 5, causal=False, backward=False)
    assert setting.flops == 2 * 3 * 49 * (2 * 5 + 2 * 5)
    assert replace(setting, backward=True).flops == 3.5 * setting.flops
    assert setting.bytes == 4 * 2 * 7 * 5 * (3 + 1 + 1 + 3)
    layer = replace(setting, projections=True)
    assert layer.flops - setting.flops == 2 * 7 * 2 * (15 * 15 + 15 * 5 + 15 * 5 + 15 * 15)
    assert layer.bytes == 4 * (2 * 2 * 7 * 15 + 15 * 15 * 2 + 15 * 5 * 2)
    assert replace(layer, dtype="bfloat16").bytes == layer.bytes / 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch must be >= 1"),
        ({"kv_heads": 2}, r"kv_heads must divide heads \(got 2 and 3\)"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"window": 0}, "window must be >= 1"),
        ({"dropout": 1.0}, "dropout must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)
