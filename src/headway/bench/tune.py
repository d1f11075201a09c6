"""Measure the table from which `attend` chooses a kernel, and how well it chooses.

`tune` times every kernel on a few shapes of every kind of call. `judge` times `attend` and every
kernel on shapes that are not in the table.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.attention.dispatch import attend
from headway.attention.kernels import tuning
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.table import KERNELS
from headway.attention.kernels.tuning import Kind, Seconds, Size
from headway.attention.options import spec_from
from headway.attention.spec import Spec
from headway.bench import measure
from headway.bench.measure import Workload

# Kinds of calls: the options that make a difference to the kernels.
OPTIONS: Mapping[str, Callable[[Size], dict[str, Any]]] = {
    "whole": lambda size: {},
    "causal": lambda size: {"causal": True},
    "window": lambda size: {"window": max(1, size.keys // 4)},
    "array": lambda size: {"mask": torch.ones(size.queries, size.keys, dtype=torch.bool).tril()},
    "softcap": lambda size: {"causal": True, "softcap": 20.0},
    "dropout": lambda size: {"causal": True, "dropout": 0.1, "seed": 0},
}
SIZES = (
    *(Size(heads, tokens, tokens, 64) for heads in (2, 24) for tokens in (16, 64, 256)),
    *(Size(heads, 1024, 1024, 64) for heads in (2, 12)),
    *(Size(12, 64, 64, features) for features in (16, 128)),
    *(Size(heads, 1, tokens, 64) for heads in (2, 32) for tokens in (64, 256, 1024)),
)
UNSEEN = (
    *(Size(8, tokens, tokens, 64) for tokens in (24, 100, 400, 1024)),
    *(Size(48, tokens, tokens, 32) for tokens in (32, 128, 200)),
    *(Size(4, tokens, tokens, 96) for tokens in (40, 333)),
    *(Size(24, 1, tokens, 64) for tokens in (40, 512)),
)
# The kernels that `attend` may choose. flex compiles for seconds at every new shape, and sdpa
# already chooses among PyTorch's other backends.
CANDIDATES = ("plain", "stacked", "einsum", "tiled", "sdpa", "triton")


SECONDS = 0.1  # per kernel and question, for the table
JUDGING = 0.3  # the same for the report, where equal times should look equal
ROUNDS = 200  # of a hundred calls each, to measure the time of a call before its kernel runs

Call = tuple[Tensor, Tensor, Tensor, Spec]  # queries, keys, values, options


class Question(NamedTuple):
    """One call to measure; `options` is a key of OPTIONS."""

    options: str
    backward: bool
    size: Size


def questions(sizes: Sequence[Size]) -> list[Question]:
    """Return all calls of these sizes; a single query is not used in training."""
    return [
        Question(options, backward, size)
        for options in OPTIONS
        for backward in (False, True)
        for size in sizes
        if size.queries > 1 or not backward
    ]


Stopped = Callable[[], bool]
Table = dict[Kind, dict[Size, Seconds]]


def tune(device: str, stopped: Stopped = lambda: False) -> Iterator[Table]:
    """Yield the table after each question."""
    table: Table = {}
    for question in questions(SIZES):
        call, workloads = prepared(question, device)
        workloads = {name: w for name, w in workloads.items() if name in CANDIDATES}
        timings = measure.alternate(workloads, seconds=SECONDS, stopped=stopped)
        if stopped():
            return
        kind, size = tuning.kind_and_size(*call)
        medians = {name: statistics.median(times) for name, times in timings.items()}
        table.setdefault(kind, {})[size] = medians
        yield table


class Verdict(NamedTuple):
    """The result of `attend` on one question: seconds by kernel, the chosen kernel and two ratios.

    regret: its time relative to the best kernel. spread: the chosen kernel relative to itself.
    """

    question: Question
    seconds: dict[str, float]
    chosen: str
    regret: float
    spread: float


def judge(device: str, stopped: Stopped = lambda: False) -> Iterator[Verdict]:
    """Yield a verdict for each question on the shapes that are not in the table."""
    for question in questions(UNSEEN):
        call, workloads = prepared(question, device)
        chosen = next(name for name in tuning.ranking(*call) if name in workloads)
        twice = {"attend": workloads.pop("attend"), "again": workloads[chosen]}
        timings = measure.alternate({**workloads, **twice}, seconds=JUDGING, stopped=stopped)
        if stopped():
            return
        medians = {name: statistics.median(times) for name, times in timings.items()}
        best = min(workloads, key=medians.__getitem__)
        yield Verdict(
            question,
            medians,
            chosen,
            regret=statistics.median(measure.ratios(timings[best], timings["attend"])),
            spread=statistics.median(measure.ratios(timings[chosen], timings["again"])),
        )


def prepared(question: Question, device: str) -> tuple[Call, dict[str, Workload]]:
    """Return the call, and a workload for every kernel that runs it and for `attend`."""
    size = question.size
    random = torch.Generator().manual_seed(0)
    shapes = [(size.heads, n, size.features) for n in (size.queries, size.keys, size.keys)]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # as models are trained there
    inputs = [torch.randn(1, *shape, generator=random).to(device, dtype) for shape in shapes]
    for x in inputs:
        x.requires_grad_(question.backward)
    options = OPTIONS[question.options](size)
    if "mask" in options:
        options["mask"] = options["mask"].to(device)
    queries, keys, values = inputs
    call = (queries, keys, values, spec_from(options))
    workloads = {
        name: workload
        for name, kernel in KERNELS.items()
        if name != "flex" and refusal(kernel, *call) is None
        if _runs(workload := _workload(name, inputs, options, question.backward))
    }
    return call, {**workloads, "attend": _workload(None, inputs, options, question.backward)}


def _runs(workload: Workload) -> bool:
    """Whether this machine's compiler and memory can run it."""
    try:
        workload.work()
    except Exception:  # of a compiler, a driver, an allocator
        return False
    return True


def _workload(
    name: str | None, inputs: list[Tensor], options: dict[str, Any], backward: bool
) -> Workload:
    gradient = torch.ones_like(inputs[0])

    def work() -> object:
        context = attend(*inputs, kernel=name, **options)
        return torch.autograd.grad(context, inputs, gradient) if backward else context

    return Workload(work, torch.cuda.synchronize if inputs[0].is_cuda else lambda: None)


def report(machine: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the results for JSON: ratios as in `Verdict`, times in microseconds."""
    itself, added = overhead()
    return {
        "machine": dict(machine),
        "regret": _spread([verdict.regret for verdict in verdicts]),
        "a kernel against itself": _spread([verdict.spread for verdict in verdicts]),
        "microseconds": {"sdpa itself": round(1e6 * itself, 2), "added": round(1e6 * added, 2)},
        "calls": [
            {
                **verdict.question._asdict(),
                "size": verdict.question.size._asdict(),
                "chosen": verdict.chosen,
                "regret": round(verdict.regret, 3),
                "spread": round(verdict.spread, 3),
                "microseconds": {k: round(1e6 * t, 1) for k, t in verdict.seconds.items()},
            }
            for verdict in verdicts
        ],
    }


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    mean = statistics.geometric_mean(ratios)
    values = {"geometric mean": mean, "least": min(ratios), "most": max(ratios)}
    return {name: round(value, 3) for name, value in values.items()}


def summary(report: Mapping[str, Any]) -> str:
    """Return the report in a few lines."""
    regret, itself = report["regret"], report["a kernel against itself"]
    call = report["microseconds"]
    worst = max(report["calls"], key=lambda call: call["regret"])
    way = "forward and backward" if worst["backward"] else "forward"
    size = ", ".join(f"{number} {name}" for name, number in worst["size"].items())
    return (
        f"time of attend relative to the best kernel (without flex, which compiles for each "
        f"shape), on {len(report['calls'])} calls that are not in the table:\n"
        f"  geometric mean {regret['geometric mean']:.3f}, worst {regret['most']:.2f} "
        f"({worst['chosen']} for {worst['options']}, {way}, {size})\n"
        f"a kernel relative to itself: geometric mean {itself['geometric mean']:.3f}, from "
        f"{itself['least']:.2f} to {itself['most']:.2f}\n"
        f"attend adds {call['added']:.1f} microseconds to PyTorch's {call['sdpa itself']:.1f}"
    )


def overhead() -> tuple[float, float]:
    """Return the seconds of PyTorch's function on a few tokens, and those that `attend` adds.

    `attend` gets the kernel's name, plus one look at the table, since it might choose another. The
    minimum of many rounds, because other processes can only add time.
    """
    x = torch.randn(1, 1, 4, 8)
    function = torch.nn.functional.scaled_dot_product_attention
    spec = spec_from({"causal": True})

    def through() -> None:
        tuning.ranking(x, x, x, spec)
        attend(x, x, x, causal=True, kernel="sdpa")

    workloads = (Workload(lambda: function(x, x, x, is_causal=True)), Workload(through))
    with torch.no_grad():
        rounds = [[workload.seconds(100) for workload in workloads] for _ in range(ROUNDS)]
    itself, with_attend = map(min, zip(*rounds, strict=True))
    return itself, with_attend - itself
