"""Which input of an attention is wrong, if its scores or its context are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from headway.divergence.matching import correlation, layouts
from headway.divergence.measure import NEAR, difference
from headway.divergence.names import kind, role
from headway.divergence.operations import Operation
from headway.divergence.sites import Site, Trial, WrongStep
from headway.tracing import BEFORE, INSIDE

if TYPE_CHECKING:
    from headway.divergence.search import Search

# Steps that are computed from the same input, in an order that differs between programs.
INPUTS = (*BEFORE, "queries", "keys", "values")
FAR = 40  # the most results that are looked at from which a value may have been computed


@final
class Inside:
    """The inputs of the attentions of a model, in the current run of a search.

    Programs arrange queries, keys and values in many ways before the products read them, so they
    are replaced where the products read them; then it is told how early they are wrong.
    """

    def __init__(self, search: Search) -> None:
        self.steps, self.limits, self.position = search.steps, search.limits, search.position
        self.operations, self.window, self.end = search.operations, search.window, search.end
        self._matched, self._reach = search.matched, search.reach

    def cause(self, best: Trial) -> WrongStep:
        """Which inputs of an attention are wrong, if its scores or its context are."""
        wrong_step = WrongStep(best.name, best.sites)
        prefix, _, step = best.name.rpartition(".")
        if step not in (*INSIDE, *INPUTS, "context", "output", "after_attention"):
            return wrong_step
        if step == "after_attention":
            prefix = f"{prefix}.attention"
        if note := self._missing_keys(prefix, best.sites[best.name].number):
            return WrongStep(f"{prefix}.keys", best.sites, note=note)
        reads = self._reads(prefix, best.sites[best.name].number)
        wrong = {name: sites for name, sites in reads.items() if not self._is_right(name, sites[0])}
        if not wrong:
            return wrong_step
        first = next(iter(wrong))
        # If the features of queries and keys are in another order, both must be replaced.
        for choices in ([name for name in reads if name in wrong], [*reads]):
            for pick in product(*(reads[name] for name in choices)):
                sites = dict(zip(choices, pick, strict=True))
                reach = self._reach(sites)
                if reach >= best.reach or reach == self.end:
                    output = self._projected(WrongStep(first, sites), prefix, best.reach, wrong)
                    return self._product(output, prefix, wrong)
        return wrong_step

    def _missing_keys(self, prefix: str, number: int) -> str:
        """What is wrong if this attention does not read all keys, as from a wrong cache."""
        near = self.operations[max(number - self.window // 2, 0) : number + 1]
        steps = {n: x for n, x in self.steps.items() if n.startswith(prefix)}
        if f"{prefix}.weights" not in steps:
            return ""
        needed = needed_keys(steps)
        count = next(iter([*key_counts(near, steps)][::-1]), needed)
        return f"{count} keys are read instead of {needed}" if count < needed else ""

    def _product(
        self, wrong_step: WrongStep, prefix: str, wrong: Mapping[str, list[Site]]
    ) -> WrongStep:
        """The scores or the context, if what they read was right before it was arranged."""
        if wrong_step.name not in wrong:
            return wrong_step  # it was wrong before already
        for name, sites in wrong.items():
            step = self.steps[name]
            split = sum(size != 1 for size in step.shape)
            sources = self._ancestors(source(self.operations, sites[0]), step, FAR)
            is_split = any(
                self._is_same(name, site) and sum(n != 1 for n in site.layout.shape) >= split
                for site in sources
            )
            is_arranged = is_split and self._has_right_numbers(name, sites[0])
            if not is_arranged and not self._has_right_heads(name, sites[0]):
                return wrong_step
        step_name = "context" if {*map(kind, wrong)} == {"values"} else "scores"
        return WrongStep(f"{prefix}.{step_name}", wrong_step.sites)

    def _read_value(self, site: Site) -> Tensor:
        """What a product reads at this place."""
        assert isinstance(site.place, tuple)
        return self.operations[site.number].operands[site.place[1]].double()

    def _has_right_numbers(self, name: str, site: Site) -> bool:
        """Whether the numbers that are read are those of the step, in any order."""
        value = self._read_value(site)
        both = (x.flatten().sort().values / x.norm() for x in (site.value(self.steps[name]), value))
        return difference(*both) <= NEAR * self.limits[name]

    def _has_right_heads(self, name: str, site: Site) -> bool:
        """Whether repeated heads are read in the wrong order."""
        if site.repeats == 1:
            return False
        step = self.steps[name].repeat_interleave(site.repeats, -3)
        value = self._read_value(site)
        heads = []
        positions = torch.arange(1, step.shape[-2] + 1)[:, None]
        for x in (step, site.layout.undo(value, step.shape)):
            # One number per head that does not depend on the order of the features.
            order = (positions * (x / x.norm()) ** 3).sum((-2, -1))
            heads.append(order.sort(-1).values)
        return difference(*heads) <= NEAR * self.limits[name]

    def _is_same(self, name: str, site: Site) -> bool:
        """Whether the result at a place is the step, up to a factor and the order of features."""
        step = self.steps[name]
        value = site.layout.undo(self.operations[site.number].value.double(), step.shape)
        norm = float(value.norm())
        if not norm:
            return False
        value = value * (step.norm() / norm)
        return difference(step.sort(-1).values, value.sort(-1).values) <= NEAR * self.limits[name]

    def _reads(self, prefix: str, number: int) -> dict[str, list[Site]]:
        """The places where an attention reads queries, keys and values, with several factors."""
        names = [f"{prefix}.{name}" for name in ("queries", "keys", "values")]
        if not all(name in self.steps for name in names):
            return {}
        queries, keys, values = (self.steps[name] for name in names)
        cells = (*queries.shape[:-1], keys.shape[-2])
        context = (*queries.shape[:-1], values.shape[-1])
        first = min(self.position[name] for name in self.steps if name.startswith(prefix))
        before = [x.number for name, x in self._matched.items() if self.position[name] < first]
        products = [
            (index, x)
            for index, x in enumerate(self.operations)
            if x.name in ("bmm", "mm", "baddbmm")
            and abs(index - number) < self.window
            and index > max(before, default=-1)
        ]
        output: dict[str, list[Site]] = {}
        repeats = queries.shape[-3] // keys.shape[-3]
        scale = queries.shape[-1] ** -0.5
        for index, x in products:
            one, other = x.shapes[-2:]
            offset = len(x.shapes) - 2
            is_scores = layouts(cells, tuple(x.value.shape)) and x.value.shape[-1] == cells[-1]
            if is_scores and names[0] not in output:
                for name, argument, shape in ((names[0], 0, one), (names[1], 1, other)):
                    site = self._read(name, index, offset + argument, shape, repeats)
                    factors = (1.0, scale**0.5, scale) if argument == 0 else (1.0, scale**0.5)
                    if site is not None:
                        output[name] = [site._replace(factor=factor) for factor in factors]
            elif layouts(context, tuple(x.value.shape)) and names[0] in output:
                site = self._read(names[2], index, offset + 1, other, repeats)
                if site is not None:
                    output[names[2]] = [site]
                break
        return output

    def _read(
        self, name: str, index: int, argument: int, shape: tuple[int, ...], repeats: int
    ) -> Site | None:
        """The place of a step among the arguments of a product; heads may be repeated there."""
        step = self.steps[name]
        for count in (1, repeats):
            sizes = list(step.shape)
            sizes[-3] *= count
            value = self.operations[index].operands[argument]
            wide = step if count == 1 else step.repeat_interleave(count, -3)
            similarity = correlation(wide, value) if layouts(tuple(sizes), shape) else None
            if similarity is not None:
                return Site((index, argument), similarity[1], count)
        return None

    def _is_right(self, name: str, site: Site) -> bool:
        """Whether a read value is the step, up to a factor and the order of features."""
        value = self._read_value(site)
        step = site._replace(factor=1.0).value(self.steps[name])
        norm = value.norm()
        if not float(norm):
            return False
        scaled = value * (step.norm() / norm)
        if difference(step, scaled) <= NEAR * self.limits[name]:
            return True
        shape = list(self.steps[name].shape)
        shape[-3] *= site.repeats
        one = site.layout.undo(step, shape).sort(-1).values
        two = site.layout.undo(scaled, shape).sort(-1).values
        return difference(one, two) <= NEAR * self.limits[name]

    def _projected(
        self, wrong_step: WrongStep, prefix: str, reach: int, wrong: Iterable[str]
    ) -> WrongStep:
        """Whether these were wrong before rotary positions or QK-norm already."""
        roles = {*map(role, wrong)}
        for before in ("unrotated_", "unnormalized_"):
            places: dict[str, list[Site]] = {}
            for name, site in wrong_step.sites.items():
                earlier = f"{prefix}.{before}{role(name)}"
                if earlier in self.steps:
                    maker = source(self.operations, site)
                    places[earlier] = self._ancestors(maker, self.steps[earlier])
                elif role(name) == "values":
                    places[name] = [site]
            if not any(before in name for name in places):
                continue
            sites = self._healing(places, reach)
            if sites is not None:
                names = [name for name in sites if role(name) in roles]
                wrong_step = WrongStep(min(names, key=self.position.__getitem__), sites)
            elif (first := self._unlike(wrong_step, f"{prefix}.{before}", roles)) is not None:
                return WrongStep(first, wrong_step.sites)
        return wrong_step

    def _healing(self, places: Mapping[str, list[Site]], reach: int) -> dict[str, Site] | None:
        """One place for each step, so that replacing them together makes so many steps right."""
        for pick in product(*places.values()):
            sites = dict(zip(places, pick, strict=True))
            if len({site.place for site in pick}) == len(pick) and self._reach(sites) >= reach:
                return sites
        return None

    def _unlike(self, wrong_step: WrongStep, start: str, roles: Collection[str]) -> str | None:
        """The first step with this start of its name that none of the places was computed from.

        It is not proved by replacing it, because a port may have the features in another order.
        """
        for name, site in wrong_step.sites.items():
            earlier = f"{start}{role(name)}"
            if earlier not in self.steps or role(name) not in roles:
                continue
            maker = source(self.operations, site)
            candidates = self._ancestors(maker, self.steps[earlier], FAR)
            if not any(self._is_same(earlier, candidate) for candidate in candidates):
                return earlier
        return None

    def _ancestors(self, number: int, step: Tensor, most: int = 6) -> list[Site]:
        """Operations of the size of a step from which another was computed, nearest first."""
        output: list[Site] = []
        level, seen = [number], set[int]()
        for _ in range(5 * most):
            above: list[int] = []
            for index in level:
                if index < 0 or index in seen:
                    continue
                seen.add(index)
                similarity = correlation(step, self.operations[index].value)
                if similarity is not None:
                    output.append(Site(index, similarity[1]))
                above += self.operations[index].inputs
            level = above
        return output[:most]


def needed_keys(steps: Mapping[str, Tensor]) -> int:
    """The number of keys from the first to the last one that the first attention has weights on."""
    weights = next((x for name, x in steps.items() if name.endswith(".weights")), torch.ones(1, 1))
    used = weights.flatten(0, -2).any(0).nonzero().flatten()
    return int(used[-1] - used[0]) + 1 if len(used) else 0


def key_counts(operations: Sequence[Operation], steps: Mapping[str, Tensor]) -> list[int]:
    """The numbers of keys that products of queries and keys read, in order, without repetition."""
    queries = next((x for name, x in steps.items() if name.endswith(".queries")), None)
    if queries is None:
        return []
    rows, features = queries.numel() // queries.shape[-1], queries.shape[-1]
    counts = [
        x.value.numel() // rows
        for x in operations
        if x.name == "bmm"
        and x.shapes[0][-1] == features
        and x.shapes[0][0] * x.shapes[0][1] == rows
    ]
    return [*dict.fromkeys(counts)]


def source(operations: Sequence[Operation], site: Site) -> int:
    """The operation that computed what is at a place; -1 if none did."""
    if isinstance(site.place, int):
        return site.place
    number, argument = site.place
    return operations[number].inputs[argument]
