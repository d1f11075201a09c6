"""The time model of `headway plan` against published measurements: fit, test, and their errors.

    python -m benchmarks.plan --output docs/bench/plan.json

The fractions of a card's limits in `headway.plan.cards.EFFICIENCIES` are those that minimize the
mean of the squared logarithms of predicted / measured over every second row; the other rows test
them. It takes ten seconds, without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import report

from headway.plan.cards import Efficiency
from headway.plan.published import SOURCES, Row, rows
from headway.plan.seconds import seconds

GENERATIONS = ("ampere", "hopper")
MODES = (False, True)  # compiled
# products and attention of each generation; memory of each mode.
START = {("products", g): 0.7 for g in GENERATIONS} | {("attention", g): 0.7 for g in GENERATIONS}
START |= {("memory", mode): 0.7 for mode in MODES}
Values = dict[tuple[str, Any], float]


def predicted(row: Row, values: Values) -> float:
    """Tokens per second and GPU."""
    generation = row.cluster.card.generation
    efficiency = Efficiency(
        values["products", generation],
        values["attention", generation],
        values["memory", row.work.compiled],
    )
    times = seconds(
        row.work, row.cluster, efficiency, sharding=row.sharding, reduced=row.reduced, each=row.each
    )
    return row.work.tokens_per_step / times.total


def loss(table: Sequence[Row], values: Values) -> float:
    return sum(math.log(predicted(row, values) / row.speed) ** 2 for row in table) / len(table)


def fit(table: Sequence[Row]) -> Values:
    """Minimize the loss by one value at a time, in steps that become smaller."""
    values, step = dict(START), 0.1
    while step > 0.002:
        before = loss(table, values)
        for name in values:
            choices = [values[name] + change for change in (-step, 0, step)]
            choices = [min(max(value, 0.05), 1.0) for value in choices]
            values[name] = min(choices, key=lambda v, name=name: loss(table, {**values, name: v}))
        if loss(table, values) >= before:
            step /= 2
    return {name: round(value, 2) for name, value in values.items()}
