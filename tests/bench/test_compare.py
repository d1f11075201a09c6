"""Right, wrong, failed, skipped: each implementation is shown as what it is."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from headway.attention.dispatch import attend
from headway.attention.spec import Unsupported
from headway.bench import compare, expected, implementations, measure
from headway.bench.compare import Bench, Row, Table
from headway.bench.implementations import Candidate, TorchImplementation, baseline, candidates
from headway.bench.settings import Setting
from headway.torch import GPT  # noqa: F401 - what the first call of a process would load

SMALL = Setting(batch=2, tokens=24, heads=3, kv_heads=3, head_dim=8)


@pytest.fixture(autouse=True)
def patience(monkeypatch, request):
    """No run of these is slow, but the machine may be; and JAX takes a second to compile."""
    monkeypatch.setattr(compare, "PATIENCE", 1e6)
    if request.node.get_closest_marker("slow") is None and "jax" not in request.node.name:
        monkeypatch.setattr(implementations, "find_spec", lambda name: None)


def bench(**options):
    return Bench(**{"seconds": 0.01, "peak": lambda dtype: 1e30, "kernels": ["plain"], **options})


def planted(function, name="planted"):
    def make(setting, inputs):
        return TorchImplementation(partial(function, setting=setting), inputs, setting)

    return Candidate(name, make)


def result(function, setting=SMALL, **options):
    table = bench(custom=[planted(function)], **options).compare(setting)
    return table, row(table, "planted")


def row(table, name):
    (result,) = (each for each in table.rows if each.name == name)
    return result


def right(queries, keys, values, *, setting):
    return attend(queries, keys, values, kernel="plain", **setting.options)


def ahead(queries, keys, values, *, setting):
    """The mask shifted by one: each query sees one later key."""
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:]).triu(2).bool()
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ values


def scaled(queries, keys, values, *, setting):
    return right(queries * 2, keys, values, setting=setting)


def not_a_number(queries, keys, values, *, setting):
    return right(queries, keys, values, setting=setting) + torch.nan


class DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def wrong_gradient(queries, keys, values, *, setting):
    return right(queries, DoubledGradient.apply(keys), values, setting=setting)


def raises(queries, keys, values, *, setting):
    raise ZeroDivisionError("no such\nkernel")


def sleeps(queries, keys, values, *, setting):
    time.sleep(0.02)
    return right(queries, keys, values, setting=setting)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (ahead, "attends to the future"),
        (scaled, "times the tolerance"),
        (not_a_number, "the results contain NaN or infinity"),
        (wrong_gradient, "times the tolerance"),
    ],
)
def test_what_is_wrong_is_shown_as_wrong_and_not_ranked(function, reason):
    table, wrong = result(function)
    assert wrong.verdict == "wrong"
    assert reason in wrong.reason
    assert wrong.speed is None
    assert not wrong.seconds
    assert table.ranked()[-1] is wrong
    assert row(table, "plain").verdict == "right"
    if function is not not_a_number:
        assert wrong.error > 1e-3 > table.plain_error
        assert wrong.ran


def test_a_wrong_gradient_is_right_forward():
    _, only_forward = result(wrong_gradient, replace(SMALL, backward=False))
    assert only_forward.verdict == "right"


@pytest.mark.parametrize("setting", [SMALL, replace(SMALL, window=5), replace(SMALL, causal=False)])
def test_what_is_right_is_measured(setting):
    table, fine = result(right, setting)
    assert fine.verdict == "right"
    assert fine.error <= 2 * table.plain_error + 1e-6
    assert measure.LEAST <= len(fine.seconds) <= len(fine.against) <= measure.MOST
    first, third = fine.quartiles
    assert 0 < first <= fine.median <= third
    assert fine.ran == "2 bmm"
    assert fine.compiling is None
    assert table.noise_floor is not None


def test_the_unmasked_is_wrong_only_where_there_is_a_mask():
    def unmasked(queries, keys, values, *, setting):
        return attend(queries, keys, values, kernel="plain")

    assert result(unmasked)[1].reason == "attends to the future"
    assert result(unmasked, replace(SMALL, causal=False))[1].verdict == "right"


def test_what_raises_failed():
    _, failed = result(raises)
    assert failed.verdict == "failed"
    assert failed.reason == "raised ZeroDivisionError: no such"


def test_what_exits_failed():
    def leaves(queries, keys, values, *, setting):
        raise SystemExit(0)

    assert result(leaves)[1].reason == "raised SystemExit: 0"


def test_the_slow_rank_below_the_fast():
    table, slow = result(sleeps)
    assert table.ranked()[-1] is slow
    assert slow.speed < 0.9
    assert slow.median >= 0.02


def test_what_does_not_compile_says_so(monkeypatch):
    def branches(queries, keys, values, *, setting):
        if values.sum() > 1e9:  # Dynamo cannot know
            return values
        return right(queries, keys, values, setting=setting)

    assert result(branches)[1].verdict == "right"
    setting = replace(SMALL, compiled=True)
    only_eager = [candidates(setting)[0]]
    assert only_eager[0].name == baseline(setting) == "plain, eager"
    monkeypatch.setattr(compare, "candidates", lambda setting, kernels: only_eager)
    table, failed = result(branches, setting)
    assert failed.verdict == "failed"
    assert failed.reason.startswith("compile failed: ")
    assert row(table, "plain, eager").verdict == "right"


def test_what_ran_eagerly_under_compile_has_failed(monkeypatch):
    monkeypatch.setattr(compare, "candidates", lambda setting, kernels: [])
    monkeypatch.setattr("headway.bench.implementations._compiled", lambda function: function)
    _, failed = result(right, replace(SMALL, compiled=True))
    assert failed.verdict == "failed"
    assert "nothing was compiled: 2 bmm ran" in failed.reason


@pytest.mark.slow
@pytest.mark.parametrize("part", ["alone", "with projections"])
def test_compiled_kernels_are_right_and_their_compile_time_is_separate(part):
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, str(script), part], capture_output=True, text=True)
    assert done.stdout.endswith("all compiled and right\n"), done.stderr[-3000:]


def test_a_kernels_own_reason_is_told():
    table = bench(kernels=["sdpa"]).compare(replace(SMALL, dropout=0.5))
    assert "the option dropout" in table.left_out["sdpa"]
    assert [each.name for each in table.rows] == ["plain"]


GROUPED = replace(SMALL, heads=6, kv_heads=2, window=5)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (GROUPED, {"attend"}),
        (replace(GROUPED, projections=True), {"attend", "fused projection"}),
        (replace(SMALL, projections=True, window=5), {"nn.MHA", "nn.MHA with weights"}),
        (replace(SMALL, projections=True, causal=False, backward=False), {"nn.MHA"}),
        (replace(SMALL, projections=True, dropout=0.3), {"fused projection", "attend"}),
        (replace(SMALL, dtype="bfloat16"), {"sdpa"}),
    ],
)
def test_all_candidates_are_right(setting, names):
    """Also what is no kernel: Headway's choice, the fused projection, nn.MultiheadAttention."""
    table = bench(kernels=None, seconds=1e-3).compare(setting)
    assert all(each.verdict == "right" for each in table.rows), table.rows
    assert names | {"plain"} <= {each.name for each in table.rows}


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(
    "setting", [GROUPED, replace(SMALL, dropout=0.3), replace(SMALL, dtype="bfloat16")]
)
def test_jax_is_right_and_says_what_ran(setting, backward):
    table = bench(seconds=1e-3).compare(replace(setting, backward=backward))
    result = row(table, "plain (JAX)")
    assert result.verdict == "right", result
    assert result.ran.startswith("XLA: ")
    assert result.compiling > 0
    assert result.speed > 0


def test_jax_that_is_wrong_is_seen(monkeypatch):
    """The mask is lost on the way."""

    def make(setting, inputs):
        return implementations.JaxImplementation(partial(attend, kernel="plain"), inputs, setting)

    table = bench(kernels=["plain"], custom=[Candidate("planted (JAX)", make)]).compare(SMALL)
    assert row(table, "planted (JAX)").reason == "attends to the future"
    assert row(table, "plain (JAX)").verdict == "right"


def test_fewer_kv_heads_are_refused_by_pytorchs_layer():
    table = bench(kernels=None).compare(replace(SMALL, kv_heads=1, projections=True))
    assert "as many heads" in table.left_out["nn.MHA"]


def test_memory_of_the_whole_matrix_is_quadratic():
    """And that of PyTorch's flash kernel is not."""
    sizes = {"plain": [], "sdpa": []}
    for tokens in (256, 512):
        table = bench(kernels=["sdpa"]).compare(replace(SMALL, tokens=tokens))
        for name, result in sizes.items():
            result.append(row(table, name).memory)
    short, long = sizes["plain"]
    assert 3.5 < long / short < 4.3
    assert short > 2 * 3 * 256**2 * 4  # bytes: at least the scores
    assert sizes["sdpa"][1] < long / 4


def test_what_does_not_fit_is_skipped_before_it_is_run(monkeypatch):
    lengths = []

    def watched(queries, keys, values, *, setting):
        lengths.append(queries.shape[-2])
        return right(queries, keys, values, setting=setting)

    monkeypatch.setattr(measure, "memory", lambda name="", device="": 4_000_000)
    monkeypatch.setattr(compare, "PROBES", (128, 256))
    setting = Setting(batch=3, tokens=512, heads=2, kv_heads=2, head_dim=16)
    table, skipped = result(watched, setting, kernels=["sdpa"])
    assert skipped.verdict == row(table, "plain").verdict == "skipped"
    assert skipped.reason.startswith("would need about ")
    assert skipped.reason.endswith("4.0 MB are free")
    assert set(lengths) == set(compare.PROBES)
    assert row(table, "sdpa").verdict == "right"
    # 3 batch rows, 2 heads: the scores alone are 6 MB, and the method is not far off.
    message = float(skipped.reason.split()[3])
    monkeypatch.undo()
    monkeypatch.setattr(compare, "PATIENCE", 1e6)
    real = row(bench().compare(setting), "plain").memory / 1e6
    assert 0.9 < message / real < 1.6


def test_inputs_that_do_not_fit_are_refused_in_a_line():
    began = time.perf_counter()
    table = bench().compare(replace(SMALL, tokens=10**9, window=1))
    assert "the inputs alone would need" in table.skipped
    assert time.perf_counter() - began < 1
    assert not table.rows


def test_what_could_not_end_in_time_is_not_begun(monkeypatch):
    monkeypatch.setattr(compare, "PATIENCE", 3)
    slow = Bench(seconds=2.0, peak=lambda dtype: 1e11)
    table = slow.compare(replace(SMALL, tokens=10**6))
    assert table.skipped.startswith("at this machine's peak one run would take ")
    assert "--seconds" in table.skipped


def test_a_slow_run_is_not_repeated(monkeypatch):
    monkeypatch.setattr(compare, "PATIENCE", 1)
    table = bench(seconds=1e-9, peak=lambda dtype: 1e30).compare(SMALL)
    plain = row(table, "plain")
    assert plain.verdict == "skipped"
    assert plain.reason.startswith("one run took ")
    assert not plain.seconds


def test_what_was_slow_with_fewer_tokens_is_not_begun(monkeypatch):
    monkeypatch.setattr(compare, "PATIENCE", 3)
    calls = []

    def watched(queries, keys, values, *, setting):
        calls.append(1)
        return right(queries, keys, values, setting=setting)

    shorter = Table(replace(SMALL, tokens=12), [Row("planted", once=100.0)])
    table = bench(custom=[planted(watched)], seconds=60.0).compare(SMALL, shorter)
    slow = row(table, "planted")
    assert slow.verdict == "skipped"
    assert "one run takes at least 200 s" in slow.reason
    assert slow.once == pytest.approx(200)  # so that the next length knows
    assert not calls


def test_the_batch_is_halved_until_plain_ends_in_time(monkeypatch):
    setting = replace(SMALL, batch=8)
    assert bench().affordable(setting) == setting
    monkeypatch.setattr(compare, "PATIENCE", 1)
    assert bench(seconds=1e-9).affordable(setting) == replace(setting, batch=1)


def test_ctrl_c_leaves_what_was_measured():
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 12

    table = bench(stopped=stopped, seconds=10.0, custom=[planted(sleeps)]).compare(SMALL)
    plain = row(table, "plain")
    assert plain.verdict == "right"
    assert 0 < len(plain.seconds) < measure.MOST
    assert all(each.verdict in ("right", "waiting") for each in table.rows)


def test_refused_where_it_cannot_be_made():
    def make(setting, inputs):
        raise Unsupported("has no such thing")

    table = bench(custom=[Candidate("planted", make)]).compare(SMALL)
    assert table.left_out == {"planted": "has no such thing"}


def test_every_change_is_shown():
    seen = []
    bench(show=lambda table, doing: seen.append(doing)).compare(SMALL)
    assert seen[:2] == ["the expected results", "plain"]
    assert "round 1" in seen


def test_the_truth_is_in_blocks_what_it_is_at_once(monkeypatch):
    setting = replace(
        SMALL, heads=6, kv_heads=2, dropout=0.2, window=7, projections=True, dtype="bfloat16"
    )
    complete = expected.compute(setting)
    expected._compute.cache_clear()
    monkeypatch.setattr(expected, "_CELLS", 6 * 24 * 5)  # five queries at a time
    for one, other in zip(expected.compute(setting).values, complete.values, strict=True):
        assert one.dtype == torch.float64
        assert torch.allclose(one, other, rtol=0, atol=1e-13)
    expected._compute.cache_clear()
