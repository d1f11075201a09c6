"""Search a model for the first step that differs from another model, by replacing steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from torch import Tensor

from headway.divergence.matching import Layout, Summary, correlation, equal, layouts
from headway.divergence.measure import difference
from headway.divergence.operations import PRODUCTS, Operation, Place
from headway.tracing import BEFORE, INSIDE

Steps = Mapping[str, Tensor]  # the steps of the model that is compared with, in order
Run = Callable[[Mapping[Place, Tensor], "int | None"], list[Operation]]

STREAM = ("embedded", "after_attention", "after_mlp", "attention_norm", "mlp_norm", "final_norm")
# Steps that are computed from the same input, in an order that differs between programs.
INPUTS = (*BEFORE, "queries", "keys", "values")
MOST_CANDIDATES, MOST_CAUSES = 30, 6


class Site(NamedTuple):
    """A step of A in B: a result or an argument, and how its axes are arranged there.

    repeats: how often each head is repeated. factor: of the numbers.
    """

    place: Place
    layout: Layout
    repeats: int = 1
    factor: float = 1.0

    def value(self, step: Tensor) -> Tensor:
        """The step as it is at this place."""
        step = step if self.repeats == 1 else step.repeat_interleave(self.repeats, -3)
        return self.layout.apply(step) * self.factor

    @property
    def number(self) -> int:
        """The number of the operation."""
        return self.place if isinstance(self.place, int) else self.place[0]


@dataclass
class WrongStep:
    """A step that is wrong in B, although everything that it was computed from is right.

    name: of the step. sites: the values that were replaced to prove it. in_all_layers: whether the
    same was replaced in every layer. place, value: where B computes it, and its numbers in the
    layout of `right`, those of A.
    """

    name: str
    sites: dict[str, Site]
    in_all_layers: bool = False
    place: str = ""
    value: Tensor | None = None  # of B, in the layout of the step
    right: Tensor | None = None


class Trial(NamedTuple):
    """Steps that were replaced, and the position of the last step that became right."""

    name: str
    sites: dict[str, Site]
    reach: int


class Search:
    """The search in one model `run(replaced, last)`; limits: of the difference of each step."""

    def __init__(self, steps: Steps, limits: Mapping[str, float], run: Run) -> None:
        self.steps, self.limits, self._run = steps, limits, run
        self.names = [*steps]
        self.position = {name: index for index, name in enumerate(self.names)}
        self.end = len(self.names) - 1
        self.runs = 0
        self.forced: dict[str, Site] = {}
        self.operations = self.first = self._operations({})
        numbers = re.findall(r"blocks\.(\d+)", " ".join(steps))
        self.layers = 1 + max(map(int, numbers), default=0)
        self.window = 2 * len(self.operations) // self.layers + 20
        self.matched = self._matches(self.operations, self.names)
        self.at_first = dict(self.matched)

    @property
    def is_healed(self) -> bool:
        """Whether the output is right, if the causes so far are replaced."""
        return self.names[-1] in self.matched

    def all(self) -> list[WrongStep]:
        """Search until the output is right; return the causes."""
        causes: list[WrongStep] = []
        while not self.is_healed and len(causes) < MOST_CAUSES:
            wrong_step = self._next()
            if wrong_step is None:
                break
            is_next = bool(causes) and _block(wrong_step.name) != _block(causes[0].name)
            if is_next and self._replace_in_all_layers(causes):
                continue
            self._look_at(wrong_step)
            causes.append(wrong_step)
            self._accept(wrong_step.sites)
        if causes and not self.is_healed:
            self._replace_in_all_layers(causes)
        if len([c for c in causes if _block(c.name) == _block(causes[0].name)]) > 2:
            # Nearly everything in this block is wrong, such as with the weights of another one.
            block = _block(causes[0].name)
            missing = [n for n in self.names if n.startswith(block) and n not in self.at_first]
            causes[0].name = missing[0]
        return causes

    def _look_at(self, wrong_step: WrongStep) -> None:
        """Set the place and the numbers of a step that is about to be replaced."""
        site = wrong_step.sites.get(wrong_step.name) or next(iter(wrong_step.sites.values()))
        x = self.operations[site.number]
        source = self._source(site)
        wrong_step.place = self.operations[source if source >= 0 else site.number].place
        if wrong_step.name not in wrong_step.sites:
            return
        value = x.value if isinstance(site.place, int) else x.operands[site.place[1]]
        right = self.steps[wrong_step.name]
        if site.repeats > 1:
            right = right.repeat_interleave(site.repeats, -3)
        if value.numel() == right.numel():
            wrong_step.value, wrong_step.right = (
                site.layout.undo(value, right.shape) / site.factor,
                right,
            )

    def _accept(self, sites: Mapping[str, Site]) -> None:
        self.forced |= sites
        self.operations = self._operations(self.forced)
        self.matched = self._matches(self.operations, self.names) | self.forced

    def _operations(self, sites: Mapping[str, Site], last: int | None = None) -> list[Operation]:
        self.runs += 1
        return self._run({s.place: s.value(self.steps[n]) for n, s in sites.items()}, last)

    def _matches(
        self, operations: Sequence[Operation], names: Iterable[str], first: int = 0
    ) -> dict[str, Site]:
        """The steps that have an equal result, from the operation `first` on."""
        by_count: dict[int, list[tuple[int, Tensor, Summary]]] = {}
        for number, x in enumerate(operations[first:], first):
            if x.name != "output":
                entry = (number, x.value, Summary.of(x.value))
                by_count.setdefault(x.value.numel(), []).append(entry)
        output = {}
        for name in names:
            step = self.steps[name]
            candidates = by_count.get(step.numel(), [])
            if name == self.names[-1]:
                last = operations[-1]
                is_last = last.name == "output" and step.numel() == last.value.numel()
                candidates = [(len(operations) - 1, last.value, Summary.of(last.value))] * is_last
            for number, layout in equal(step, candidates, self.limits[name]):
                output[name] = Site(number, layout)
                break
        return output

    def _next(self) -> WrongStep | None:
        """The first wrong step, if those of `forced` are replaced."""
        unmatched = [name for name in self.names if name not in self.matched]
        last = next((n for n in unmatched if n.endswith(("after_mlp", "logits"))), unmatched[-1])
        names = [n for n in unmatched if self.position[n] <= self.position[last]]
        best: Trial | None = None
        for name in names:
            best = self._trial(name)
            if best is not None:
                break
        # A step that is right may have been changed before it was read.
        position = self.position[unmatched[0]]
        if position:
            before = self.names[position - 1]
            trial = self._trial(before)
            step = before.rpartition(".")[2]
            if trial is not None and (
                best is None
                or trial.reach > best.reach
                or (trial.reach == best.reach and step in INSIDE)
            ):
                best = trial
        if best is None:
            return None
        site = best.sites[best.name]
        kind = best.name.rpartition(".")[2]
        if best.name in self.matched and kind in STREAM:
            between = site.number - self.matched[best.name].number
            if between > 3:  # more than a factor: what comes next begins with something else
                return WrongStep(self.names[position], best.sites)
        if kind == "queries" and site.factor != 1 and self._is_multiple(best.name, site):
            return WrongStep(f"{best.name.removesuffix('queries')}scaled", best.sites)
        return self._inside(best)

    def _is_multiple(self, name: str, site: Site) -> bool:
        value, step = self.operations[site.number].value.double(), site.value(self.steps[name])
        norm = float(value.norm())
        return bool(norm) and difference(step, value * (step.norm() / norm)) <= self.limits[name]

    def _trial(self, name: str) -> Trial | None:
        best: Trial | None = None
        for site in self._candidates(name):
            reach = self._reach({name: site})
            if reach > self.position[name] and (best is None or reach > best.reach):
                best = Trial(name, {name: site}, reach)
            if reach == self.end:
                break
        return best

    def _reach(self, sites: Mapping[str, Site]) -> int:
        """The position of the last step that becomes right if these are replaced; otherwise -1.

        -1 also if a step becomes wrong.
        """
        first = min(self.position[name] for name in sites)
        start = min(site.number for site in sites.values())
        last = max(site.number for site in sites.values()) + self.window
        operations = self._operations({**self.forced, **sites}, last)
        later = self.names[first + 1 :]
        right = self._matches(operations, later, start)
        for name in later:
            old = self.matched.get(name)
            if old is None or name in right or name in self.forced or name in sites:
                continue
            if start < old.number < min(last, len(operations)):
                return -1
        new = [self.position[name] for name in right if name not in self.matched]
        if self.names[-1] in sites and operations[-1].name == "output":
            end = self._matches(operations, [self.names[-1]])
            return self.end + bool(end) if end else -1
        return max(new, default=-1)

    def _candidates(self, name: str) -> list[Site]:
        """Places that may be this step, in order.

        Of a step that is right, only later ones, which may have changed it.
        """
        step, position = self.steps[name], self.position[name]
        kind = name.rpartition(".")[2]
        earlier = [
            n
            for n in self.names[:position]
            if n in self.matched and not (kind in INPUTS and n.rpartition(".")[2] in INPUTS)
        ]
        low = max((self.matched[n].number for n in earlier), default=0)
        if name in self.matched:
            low = self.matched[name].number + 1
        known = {site.place for site in self.matched.values()}
        sites: list[Site] = []
        for number in range(low, min(len(self.operations) - 1, low + self.window)):
            x = self.operations[number]
            similarity = correlation(step, x.value)
            if similarity is None:
                continue
            factors = (1.0, *self._scales(step)) if kind == "queries" else (1.0,)
            sites += [Site(number, similarity[1], factor=factor) for factor in factors]
            if number in known and kind in STREAM:
                sites += self._reads_without_residual(number, step)[:1]
            if len(sites) >= MOST_CANDIDATES:
                break
        return sites

    def _scales(self, queries: Tensor) -> tuple[float, float]:
        """What a program may multiply the queries with instead of the scores."""
        return queries.shape[-1] ** -0.5, queries.shape[-1] ** -0.25

    def _reads_without_residual(self, number: int, step: Tensor) -> list[Site]:
        """Where the first matrix product reads this result, as if a norm were missing there."""
        output = []
        for reader, x in enumerate(self.operations[number:], number):
            if x.name in PRODUCTS and number in x.inputs:
                argument = x.inputs.index(number)
                for layout in layouts(tuple(step.shape), x.shapes[argument])[:1]:
                    output.append(Site((reader, argument), layout))
        return output

    def _inside(self, best: Trial) -> WrongStep:
        """Which inputs of an attention are wrong, if its scores or its context are."""
        wrong_step = WrongStep(best.name, best.sites)
        prefix, _, kind = best.name.rpartition(".")
        if kind not in (*INSIDE, *INPUTS, "context", "output", "after_attention"):
            return wrong_step
        if kind == "after_attention":
            prefix = f"{prefix}.attention"
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

    def _product(
        self, wrong_step: WrongStep, prefix: str, wrong: Mapping[str, list[Site]]
    ) -> WrongStep:
        """The scores or the context, if what they read was right before it was arranged."""
        if wrong_step.name not in wrong:
            return wrong_step  # it was wrong before already
        for name, sites in wrong.items():
            step = self.steps[name]
            split = sum(size != 1 for size in step.shape)
            sources = self._ancestors(self._source(sites[0]), step, 40)
            is_split = any(
                self._is_same(name, site) and sum(n != 1 for n in site.layout.shape) >= split
                for site in sources
            )
            if not is_split and not self._has_right_heads(name, sites[0]):
                return wrong_step
        kinds = {name.rpartition(".")[2] for name in wrong}
        step_name = "context" if kinds == {"values"} else "scores"
        return WrongStep(f"{prefix}.{step_name}", wrong_step.sites)

    def _has_right_heads(self, name: str, site: Site) -> bool:
        """Whether repeated heads are read in the wrong order."""
        if site.repeats == 1 or isinstance(site.place, int):
            return False
        step = self.steps[name].repeat_interleave(site.repeats, -3)
        value = self.operations[site.number].operands[site.place[1]].double()
        heads = []
        for x in (step, site.layout.undo(value, step.shape)):
            rows = (x / x.norm()).flatten(-2).sort(-1).values
            order = rows.norm(dim=-1) + rows[..., 0]
            heads.append(order.sort(-1).values)
        return difference(*heads) <= 4 * self.limits[name]

    def _is_same(self, name: str, site: Site) -> bool:
        """Whether the result at a place is the step, up to a factor and the order of features."""
        step = self.steps[name]
        value = site.layout.undo(self.operations[site.number].value.double(), step.shape)
        norm = float(value.norm())
        if not norm:
            return False
        value = value * (step.norm() / norm)
        return difference(step.sort(-1).values, value.sort(-1).values) <= 4 * self.limits[name]

    def _reads(self, prefix: str, number: int) -> dict[str, list[Site]]:
        """The places where an attention reads queries, keys and values, with several factors."""
        names = [f"{prefix}.{name}" for name in ("queries", "keys", "values")]
        if not all(name in self.steps for name in names):
            return {}
        queries, keys, values = (self.steps[name] for name in names)
        cells = (*queries.shape[:-1], keys.shape[-2])
        context = (*queries.shape[:-1], values.shape[-1])
        products = [
            (index, x)
            for index, x in enumerate(self.operations)
            if x.name in ("bmm", "mm", "baddbmm") and abs(index - number) < self.window
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
        assert isinstance(site.place, tuple)
        value = self.operations[site.number].operands[site.place[1]].double()
        step = site._replace(factor=1.0).value(self.steps[name])
        norm = value.norm()
        if not float(norm):
            return False
        scaled = value * (step.norm() / norm)
        if difference(step, scaled) <= 4 * self.limits[name]:
            return True
        shape = list(self.steps[name].shape)
        shape[-3] *= site.repeats
        one = site.layout.undo(step, shape).sort(-1).values
        two = site.layout.undo(scaled, shape).sort(-1).values
        return difference(one, two) <= 4 * self.limits[name]

    def _projected(
        self, wrong_step: WrongStep, prefix: str, reach: int, wrong: Mapping[str, object]
    ) -> WrongStep:
        """Whether these were wrong before rotary positions or QK-norm already."""
        for before in ("unrotated_", "unnormalized_"):
            sites: dict[str, Site] = {}
            for name in wrong_step.sites:
                kind = name.rpartition(".")[2]
                other = f"{prefix}.{before}{kind.rpartition('_')[2]}"
                if other not in self.steps:
                    if kind.endswith("values"):
                        sites[name] = wrong_step.sites[name]
                    continue
                sites[other] = wrong_step.sites[name]
            if not any(before in name for name in sites):
                continue
            options = []
            for name, site in sites.items():
                if before not in name:
                    options.append([site])
                    continue
                options.append(self._ancestors(self._source(site), self.steps[name]))
            for pick in product(*options):
                trial = dict(zip(sites, pick, strict=True))
                if len({site.place for site in pick}) == len(pick) and self._reach(trial) >= reach:
                    kinds = {name.rpartition(".")[2].rpartition("_")[2] for name in wrong}
                    names = [n for n in trial if n.rpartition(".")[2].rpartition("_")[2] in kinds]
                    wrong_step = WrongStep(min(names, key=self.position.__getitem__), trial)
                    break
            else:
                # Not proved, because a port may have the features in another order.
                for name, site in wrong_step.sites.items():
                    kind = name.rpartition(".")[2].rpartition("_")[2]
                    other = f"{prefix}.{before}{kind}"
                    is_wrong = any(n.rpartition(".")[2].rpartition("_")[2] == kind for n in wrong)
                    if other not in self.steps or not is_wrong:
                        continue
                    sources = self._ancestors(self._source(site), self.steps[other], 40)
                    if not any(self._is_same(other, source) for source in sources):
                        return WrongStep(other, wrong_step.sites)
        return wrong_step

    def _source(self, site: Site) -> int:
        if isinstance(site.place, int):
            return site.place
        number, argument = site.place
        return self.operations[number].inputs[argument]

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

    def _replace_in_all_layers(self, causes: Sequence[WrongStep]) -> bool:
        """Replace the same steps in the other layers, if more steps become right."""
        everywhere: dict[str, Site] = {}
        for wrong_step in causes:
            everywhere |= self._elsewhere(wrong_step)
        if not everywhere:
            return False
        operations = self._operations(self.forced | everywhere)
        new = self._matches(operations, self.names) | self.forced | everywhere
        if len(new) - len(everywhere) <= len(self.matched):
            return False
        self.forced |= everywhere
        self.operations, self.matched = operations, new
        for wrong_step in causes:
            wrong_step.in_all_layers = True
        return True

    def _elsewhere(self, wrong_step: WrongStep) -> dict[str, Site]:
        """The same steps in the other layers, which run the same operations in the same order."""
        output: dict[str, Site] = {}
        groups: dict[tuple[str, str, str], list[int]] = {}
        for number, x in enumerate(self.operations):
            groups.setdefault(_kind(x), []).append(number)
        for name, site in wrong_step.sites.items():
            match = re.search(r"blocks\.(\d+)\.", name)
            same = groups[_kind(self.operations[site.number])]
            if match is None or len(same) % self.layers:
                return {}
            in_layer = len(same) // self.layers
            for layer in range(self.layers):
                other = f"{name[: match.start(1)]}{layer}{name[match.end(1) :]}"
                index = same.index(site.number) + (layer - int(match[1])) * in_layer
                if layer != int(match[1]) and other in self.steps and 0 <= index < len(same):
                    place: Place = same[index]
                    if not isinstance(site.place, int):
                        place = same[index], site.place[1]
                    output[other] = site._replace(place=place)
        return output


def _kind(x: Operation) -> tuple[str, str, str]:
    """What an operation has in common with the same one of another layer."""
    return re.sub(r"\d+", "*", x.module), x.name, x.line


def _block(name: str) -> str:
    match = re.search(r".*blocks\.\d+", name)
    return match[0] if match else name
