"""The table by which `attend` chooses: made, kept, used, and judged on other shapes."""

import json

import pytest
import torch

import headway
from headway.attention.kernels import tuning
from headway.attention.kernels.tuning import Size
from headway.bench import measure, tune
from headway.cli.bench import bench

SMALL, ALONE, OTHER = Size(2, 8, 8, 4), Size(2, 1, 8, 4), Size(3, 12, 12, 4)


@pytest.fixture(autouse=True)
def _few_small_and_quick(monkeypatch):
    monkeypatch.setattr(tune, "SIZES", (SMALL, ALONE))
    monkeypatch.setattr(tune, "UNSEEN", (OTHER,))
    monkeypatch.setattr(tune, "ROUNDS", 5)
    monkeypatch.setattr(measure, "MOST", 3)
    monkeypatch.setattr(measure, "SHORTEST", 1e-5)
    monkeypatch.setattr("gc.collect", lambda: 0)  # of pytest's heap, at every measurement
    yield
    tuning.path().unlink(missing_ok=True)
    tuning.forget()


def test_every_kind_is_asked_and_nobody_trains_on_one_query():
    questions = tune.questions(tune.SIZES)
    assert len(set(questions)) == len(questions) == 6 * 3
    assert {question.options for question in questions} == set(tune.OPTIONS)
    assert not any(backward and size == ALONE for _, backward, size in questions)


@pytest.mark.parametrize("options", tune.OPTIONS)
@pytest.mark.parametrize("backward", [False, True])
def test_each_side_runs_its_kernel(options, backward):
    call, workloads = tune.prepared(tune.Question(options, backward, SMALL), "cpu")
    assert {"plain", "tiled", "attend"} <= set(workloads)
    assert "flex" not in workloads
    assert ("sdpa" in workloads) == (options not in ("softcap", "dropout"))
    kind, size = tuning.kind_and_size(*call)
    assert (kind.backward, size) == (backward, SMALL)
    names = {"whole": "none", "window": "band", "array": "other"}
    assert kind.mask == names.get(options, "causal")
    plain = workloads["plain"].work()
    for workload in workloads.values():
        result = workload.work()
        assert len(result) == len(plain)
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(result, plain, strict=True))


def test_the_command_makes_the_table_and_attend_chooses_by_it(tmp_path, capsys):
    assert tuning.table() == {}
    x = torch.randn(1, 2, 8, 4)
    bench(tune=True, output=tmp_path)
    (seconds,) = (
        sizes[SMALL]
        for kind, sizes in tuning.table().items()
        if kind.mask == "causal" and not (kind.backward or kind.dropout or kind.softcap)
    )
    assert all(0 < spent < 1 for spent in seconds.values())
    chosen = headway.explain(x, x, x, causal=True)
    assert "as measured" in chosen.why
    order = tuning.measured(
        tuning.table(),
        *tuning.kind_and_size(*tune.prepared(tune.Question("causal", False, SMALL), "cpu")[0]),
    )
    assert chosen.chosen == order[0]

    result = json.loads((tmp_path / "tune.json").read_text())
    assert len(result["calls"]) == 12
    assert all(call["microseconds"]["attend"] > 0 for call in result["calls"])
    assert all(call["chosen"] in call["microseconds"] for call in result["calls"])
    message = capsys.readouterr().out
    assert "geometric mean" in message
    assert f"attend adds {result['microseconds']['added']:.1f} microseconds" in message


def test_stopped_halfway_the_table_is_what_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("headway.bench.measure.alternate", _interrupt)
    with pytest.raises(SystemExit) as stopped:
        bench(tune=True, output=tmp_path)
    assert stopped.value.code == 130
    assert not tuning.path().exists()
    assert "the table has not changed" in capsys.readouterr().out


def _interrupt(workloads, **options):
    import signal

    signal.raise_signal(signal.SIGINT)
    return {name: [1.0] for name in workloads}


def test_regret_and_spread_are_ratios_of_the_same_round(monkeypatch):
    def fixed(workloads, **options):
        best = {"attend": [2.0, 6.0, 4.0], "sdpa": [1.0, 3.0, 2.0], "again": [1.1, 3.3, 2.2]}
        return {name: best.get(name, [9.0] * 3) for name in workloads}

    monkeypatch.setattr("headway.bench.measure.alternate", fixed)
    verdict = next(v for v in tune.judge("cpu") if v.question == ("causal", False, OTHER))
    assert (verdict.chosen, round(verdict.regret, 9), round(verdict.spread, 9)) == ("sdpa", 2, 1.1)


def test_what_attend_adds_is_little_and_more_than_nothing():
    itself, added = tune.overhead()
    assert 1e-7 < itself < 1e-3
    assert 0 < added < 1e-2  # gross: shapes are checked in the tests
