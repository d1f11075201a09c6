"""The effect of a variant: differences of losses, paired by seed, with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t

ENOUGH = 5  # seeds for an interval; with fewer, only a unanimous and large effect counts
FEWEST = 3  # seeds for any claim
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
        """better, worse, no difference, undecided; or nothing, if runs are missing."""
        values = [*self.differences.values()]
        if len(values) < self.planned:  # a failed run may have been the worst
            return "nothing"
        if len(values) < FEWEST:
            return "undecided"
        low, high = self.interval or (min(values), max(values))
        if max(abs(low), abs(high)) <= SMALL:
            return "no difference"
        if self.interval is not None or _is_large(values):
            if high < 0:
                return "better"
            if low > 0:
                return "worse"
        return "undecided"

    def __str__(self) -> str:
        by_seed = ", ".join(f"{value:+.3f}" for value in self.differences.values())
        if self.interval is None:
            evidence = f"by seed: {by_seed}"
        else:
            low, high = self.interval
            evidence = (
                f"{SURE:.0%} interval {low:+.3f} to {high:+.3f}, {len(self.differences)} seeds"
            )
        start = f"{self.variant} compared with {self.against}"
        if self.claim == "nothing":
            ended = f"{len(self.differences)} of {self.planned} seeds have ended in both"
            return f"{start}: no conclusion, because only {ended}"
        if self.mean is not None and self.claim in ("better", "worse"):
            return f"{start}: {self.claim} by {abs(self.mean):.3f} {self.unit} ({evidence})"
        return f"{start}: {self.claim} ({evidence})"


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


def _is_large(differences: Sequence[float]) -> bool:
    """Whether a few differences agree: of one sign, none SMALL, and farther from 0 than from each
    other."""
    nearest = min(map(abs, differences))
    one_sign = min(differences) > 0 or max(differences) < 0
    return one_sign and nearest > max(SMALL, max(differences) - min(differences))
