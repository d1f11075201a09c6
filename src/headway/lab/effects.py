"""The effect of a variant: differences of losses, paired by seed, with an interval.

Fewer seeds than ENOUGH show a tendency. A claim needs an interval, and other seeds confirm it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t

ENOUGH = 5  # seeds for an interval, and therefore for a claim
FEWEST = 3  # seeds for a tendency
CLAIMS = ("better", "worse", "no difference")
SMALL = 0.01  # a difference in nats per token that does not matter
SURE = 0.95  # of an interval


@dataclass(frozen=True)
class Effect:
    """The differences of losses between two variants, by seed; negative is better.

    planned: the number of seeds of both. unit: of the differences.
    """

    variant: str
    against: str
    differences: Mapping[int, float]
    planned: int
    unit: str = "nats per token"

    @property
    def mean(self) -> float | None:
        """The mean difference; None if no seed has ended in both."""
        return mean(self.differences.values()) if self.differences else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t-interval of the mean difference; None with fewer seeds than ENOUGH."""
        return interval([*self.differences.values()])

    @property
    def claim(self) -> str:
        """One of CLAIMS, tendency (all of a few seeds agree), undecided, or nothing (runs are
        missing)."""
        values = [*self.differences.values()]
        if len(values) < self.planned:  # a failed run may have been the worst
            return "nothing"
        if self.interval is None:
            agree = max(values) < 0 or min(values) > 0
            return "tendency" if agree and len(values) >= FEWEST else "undecided"
        low, high = self.interval
        if max(abs(low), abs(high)) <= SMALL:
            return "no difference"
        if high < 0:
            return "better"
        return "worse" if low > 0 else "undecided"

    @property
    def result(self) -> str:
        """The claim with its evidence."""
        seeds = len(self.differences)
        if self.claim == "nothing":
            return f"no conclusion, because only {seeds} of {self.planned} seeds have ended in both"
        average = self.mean or 0.0
        size = f"by {abs(average):.3f} {self.unit}"
        found = self.claim
        if self.interval is None:
            if self.claim == "tendency":
                side = "lower" if average < 0 else "higher"
                found = f"tendency: {side} {size} in all {seeds} seeds"
            by_seed = ", ".join(f"{value:+.3f}" for value in self.differences.values())
            return f"{found} ({by_seed}); a claim needs {ENOUGH} seeds"
        if self.claim in ("better", "worse"):
            found = f"{self.claim} {size}"
        low, high = self.interval
        return f"{found} ({SURE:.0%} interval {low:+.3f} to {high:+.3f}, {seeds} seeds)"

    def confirmed_by(self, other: Effect) -> bool | None:
        """Whether other seeds give the same claim; None if there is no claim."""
        return self.claim == other.claim if self.claim in CLAIMS else None

    def __str__(self) -> str:
        return f"{self.variant} compared with {self.against}: {self.result}"


def effect_of(
    variant: str,
    against: str,
    losses: Mapping[str, Mapping[int, float]],
    planned: int,
    unit: str = Effect.unit,
) -> Effect:
    """Compare two variants by the seeds that both have."""
    new, old = losses.get(variant, {}), losses.get(against, {})
    differences = {seed: new[seed] - old[seed] for seed in sorted(new.keys() & old.keys())}
    return Effect(variant, against, differences, planned, unit)


def interval(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's t-interval of the mean; None with fewer numbers than ENOUGH."""
    if len(numbers) < ENOUGH:
        return None
    reach = t.ppf((1 + SURE) / 2, len(numbers) - 1) * stdev(numbers) / sqrt(len(numbers))
    return mean(numbers) - float(reach), mean(numbers) + float(reach)
