"""The table by which `attend` chooses a kernel, and how well it chooses by it.

`tune` times every kernel on a few shapes of every kind of call. `judge` lets `attend` choose for
shapes that are not in the table, and times it beside every kernel.
"""

from __future__ import annotations

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
from headway.bench.measure import Side

# What the kernels tell apart.
ASKED: Mapping[str, Callable[[Size], dict[str, Any]]] = {
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
# What `attend` may choose. flex compiles for seconds at every new shape, and PyTorch's backends by
# name are what sdpa chooses from.
CANDIDATES = ("plain", "stacked", "einsum", "tiled", "sdpa", "triton")


SECONDS = 0.1  # of one kernel on one question
JUDGING = 0.3  # the same, where two equal times should look equal
ROUNDS = 200  # of a hundred calls each, to see what a call costs before its kernel runs


Call = tuple[Tensor, Tensor, Tensor, Spec]  # queries, keys, values, options


class Question(NamedTuple):
    """One call to measure; `asked` is a key of ASKED."""

    asked: str
    backward: bool
    size: Size


def questions(sizes: Sequence[Size]) -> list[Question]:
    """Everything that can be asked of these sizes; nobody trains on one query."""
    return [
        Question(asked, backward, size)
        for asked in ASKED
        for backward in (False, True)
        for size in sizes
        if size.queries > 1 or not backward
    ]


Stopped = Callable[[], bool]
Table = dict[Kind, dict[Size, Seconds]]


def tune(device: str, stopped: Stopped = lambda: False) -> Iterator[Table]:
    """The table so far, after each question."""
    table: Table = {}
    for question in questions(SIZES):
        call, sides = prepared(question, device)
        sides = {name: side for name, side in sides.items() if name in CANDIDATES}
        found = measure.in_turns(sides, seconds=SECONDS, stopped=stopped)
        if stopped():
            return
        kind, size = tuning.kind_and_size(*call)
        medians = {name: statistics.median(spent) for name, spent in found.items()}
        table.setdefault(kind, {})[size] = medians
        yield table


class Verdict(NamedTuple):
    """How `attend` did on one question: seconds by kernel, what it took, and two ratios.

    regret: its time against the best kernel's. spread: the kernel that it took against itself.
    """

    question: Question
    seconds: dict[str, float]
    chosen: str
    regret: float
    spread: float


def judge(device: str, stopped: Stopped = lambda: False) -> Iterator[Verdict]:
    """A verdict for each question on the shapes that are not in the table."""
    for question in questions(UNSEEN):
        call, sides = prepared(question, device)
        chosen = next(name for name in tuning.ranking(*call) if name in sides)
        twice = {"attend": sides.pop("attend"), "again": sides[chosen]}
        found = measure.in_turns({**sides, **twice}, seconds=JUDGING, stopped=stopped)
        if stopped():
            return
        medians = {name: statistics.median(spent) for name, spent in found.items()}
        best = min(sides, key=medians.__getitem__)
        yield Verdict(
            question,
            medians,
            chosen,
            regret=_ratio(found["attend"], found[best]),
            spread=_ratio(found["again"], found[chosen]),
        )


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=False))


def prepared(question: Question, device: str) -> tuple[Call, dict[str, Side]]:
    """The call, every kernel that runs it, and `attend`, which chooses one."""
    size = question.size
    random = torch.Generator().manual_seed(0)
    shapes = [(size.heads, n, size.features) for n in (size.queries, size.keys, size.keys)]
    inputs = [torch.randn(1, *shape, generator=random).to(device) for shape in shapes]
    for x in inputs:
        x.requires_grad_(question.backward)
    options = ASKED[question.asked](size)
    if "mask" in options:
        options["mask"] = options["mask"].to(device)
    queries, keys, values = inputs
    call = (queries, keys, values, spec_from(options))
    names = [
        name
        for name, kernel in KERNELS.items()
        if name != "flex" and refusal(kernel, *call) is None
    ]
    sides = {name: _side(name, inputs, options, question.backward) for name in names}
    sides = {name: side for name, side in sides.items() if _runs(side)}
    return call, {**sides, "attend": _side(None, inputs, options, question.backward)}


def _runs(side: Side) -> bool:
    """Whether a kernel that takes the call can run it on this machine's compiler and memory."""
    try:
        side.work()
    except Exception:  # of a compiler, a driver, an allocator
        return False
    return True


def _side(name: str | None, inputs: list[Tensor], options: dict[str, Any], backward: bool) -> Side:
    gradient = torch.ones_like(inputs[0])

    def work() -> object:
        context = attend(*inputs, kernel=name, **options)
        return torch.autograd.grad(context, inputs, gradient) if backward else context

    return Side(work, torch.cuda.synchronize if inputs[0].is_cuda else lambda: None)


def report(machine: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What was found, for JSON: ratios as in `Verdict`, times in microseconds."""
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
    found = {"geometric mean": mean, "least": min(ratios), "most": max(ratios)}
    return {name: round(value, 3) for name, value in found.items()}


def summary(found: Mapping[str, Any]) -> str:
    """The same in a few lines."""
    regret, itself = found["regret"], found["a kernel against itself"]
    call = found["microseconds"]
    worst = max(found["calls"], key=lambda call: call["regret"])
    way = "forward and backward" if worst["backward"] else "forward"
    size = ", ".join(f"{number} {name}" for name, number in worst["size"].items())
    return (
        f"attend against the best kernel (but flex, which compiles for each shape), on "
        f"{len(found['calls'])} calls that are not in the table:\n"
        f"  geometric mean {regret['geometric mean']:.3f}, worst {regret['most']:.2f} "
        f"({worst['chosen']} for {worst['asked']}, {way}, {size})\n"
        f"a kernel against itself: geometric mean {itself['geometric mean']:.3f}, from "
        f"{itself['least']:.2f} to {itself['most']:.2f}\n"
        f"attend adds {call['added']:.1f} microseconds to PyTorch's {call['sdpa itself']:.1f}"
    )


def overhead() -> tuple[float, float]:
    """Seconds a call of PyTorch's own function on a few tokens, and what `attend` adds to them.

    With the kernel named, plus one look at the choice, since `attend` may choose another. The
    least of many rounds, for whatever else the machine does only ever adds.
    """
    x = torch.randn(1, 1, 4, 8)
    function = torch.nn.functional.scaled_dot_product_attention
    spec = spec_from({"causal": True})

    def through() -> None:
        tuning.ranking(x, x, x, spec)
        attend(x, x, x, causal=True, kernel="sdpa")

    sides = (Side(lambda: function(x, x, x, is_causal=True)), Side(through))
    with torch.no_grad():
        rounds = [[side.seconds(100) for side in sides] for _ in range(ROUNDS)]
    itself, with_attend = map(min, zip(*rounds, strict=True))
    return itself, with_attend - itself
