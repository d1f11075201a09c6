"""What the losses say: differences paired by seed, and how sure one may be of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t

ENOUGH = 5  # seeds for an interval; with fewer, only what is unanimous and large counts
FEWEST = 3  # seeds to claim anything by
SMALL = 0.01  # nats a token that nobody would choose by
SURE = 0.95  # of an interval


@dataclass(frozen=True)
class Effect:
    """A variant against another: the losses' differences in nats a token, by seed.

    Negative is better. planned: seeds that both were to have. interval: Student's, of the mean
    difference; None with fewer than ENOUGH. unit: of the differences, where they are no losses.
    """

    variant: str
    against: str
    differences: Mapping[int, float]
    planned: int
    unit: str = "nats a token"

    @property
    def mean(self) -> float | None:
        """The mean difference; None where no seed ended in both."""
        return mean(self.differences.values()) if self.differences else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the true mean lies, with probability SURE, if the differences are normal."""
        return interval([*self.differences.values()])

    @property
    def claim(self) -> str:
        """better, worse, no difference seen, too short to tell; or nothing, for want of seeds."""
        found = [*self.differences.values()]
        if len(found) < self.planned:  # those that failed would have told most
            return "nothing"
        if len(found) < FEWEST:
            return "too short to tell"
        low, high = self.interval or (min(found), max(found))
        if max(abs(low), abs(high)) <= SMALL:
            return "no difference seen"
        if self.interval is not None or _is_large(found):
            if high < 0:
                return "better"
            if low > 0:
                return "worse"
        return "too short to tell"

    def __str__(self) -> str:
        by_seed = ", ".join(f"{each:+.3f}" for each in self.differences.values())
        if self.interval is None:
            sure = f"by seed: {by_seed}"
        else:
            low, high = self.interval
            sure = f"{SURE:.0%} interval {low:+.3f} to {high:+.3f}, {len(self.differences)} seeds"
        start = f"{self.variant} against {self.against}"
        if self.claim == "nothing":
            ended = f"{len(self.differences)} of {self.planned} seeds ended in both"
            return f"{start}: nothing can be said, for {ended}"
        if self.mean is not None and self.claim in ("better", "worse"):
            return f"{start}: {self.claim} by {abs(self.mean):.3f} {self.unit} ({sure})"
        return f"{start}: {self.claim} ({sure})"


def effect_of(
    variant: str,
    against: str,
    losses: Mapping[str, Mapping[int, float]],
    planned: int,
    unit: str = Effect.unit,
) -> Effect:
    """Two variants by the seeds that both have."""
    own, other = losses.get(variant, {}), losses.get(against, {})
    differences = {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}
    return Effect(variant, against, differences, planned, unit)


def interval(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Student's t-interval of the mean; None with fewer numbers than ENOUGH."""
    if len(numbers) < ENOUGH:
        return None
    reach = t.ppf((1 + SURE) / 2, len(numbers) - 1) * stdev(numbers) / sqrt(len(numbers))
    return mean(numbers) - float(reach), mean(numbers) + float(reach)


def _is_large(differences: Sequence[float]) -> bool:
    """Few seeds agree so well that it can hardly be chance: all of one sign, none of them SMALL,
    and further from 0 than from each other."""
    nearest = min(abs(each) for each in differences)
    one_sign = min(differences) > 0 or max(differences) < 0
    return one_sign and nearest > max(SMALL, max(differences) - min(differences))
