"""Search a model for the first step that differs from another model, by replacing steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import final

from torch import Tensor

from headway.divergence.inside import INPUTS, Inside, source
from headway.divergence.matching import Summary, correlation, equal, layouts
from headway.divergence.measure import difference
from headway.divergence.names import block, kind
from headway.divergence.operations import PRODUCTS, Operation, Place
from headway.divergence.sites import Site, Trial, WrongStep
from headway.tracing import INSIDE

Steps = Mapping[str, Tensor]  # the steps of the model that is compared with, in order
Run = Callable[..., list[Operation]]  # `operations.record` of a model and tokens

STREAM = ("embedded", "after_attention", "after_mlp", "attention_norm", "mlp_norm", "final_norm")
MOST_CANDIDATES, MOST_CAUSES = 30, 6
CHANGE = 10  # the most operations that change a right step; a layer has more
FACTOR = 3  # the most operations of a factor, such as a division by a root


@final
class Search:
    """The search in one model `run(replaced, last)`; limits: of the difference of each step."""

    def __init__(self, steps: Steps, limits: Mapping[str, float], run: Run) -> None:
        self.steps, self.limits, self._run = steps, limits, run
        self.names = [*steps]
        self.position = {name: index for index, name in enumerate(self.names)}
        self.end = len(self.names) - 1
        self.summaries = {name: Summary.of(step) for name, step in steps.items()}
        self.forced: dict[str, Site] = {}
        self.operations: list[Operation] = []
        self.operations = self.first = self._operations({})
        numbers = re.findall(r"blocks\.(\d+)", " ".join(steps))
        self.layers = 1 + max(map(int, numbers), default=0)
        self.window = 2 * len(self.operations) // self.layers + 20  # operations of two layers
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
            wrong_step = self._next() or self._wrong_output()
            if wrong_step is None:
                break
            if not wrong_step.sites:
                causes.append(wrong_step)
                break
            is_next = bool(causes) and block(wrong_step.name) != block(causes[0].name)
            if is_next and self._replace_in_all_layers(causes):
                continue
            self._look_at(wrong_step)
            causes.append(wrong_step)
            self._accept(wrong_step.sites)
        if causes and not self.is_healed:
            self._replace_in_all_layers(causes)
        if len([c for c in causes if block(c.name) == block(causes[0].name)]) > 2:
            # Nearly everything in this layer is wrong, such as with the weights of another one.
            layer = block(causes[0].name)
            missing = [n for n in self.names if n.startswith(layer) and n not in self.at_first]
            causes[0].name = missing[0]
        return causes

    def _wrong_output(self) -> WrongStep | None:
        """The logits, if the step before is right, and nothing that can be replaced heals them."""
        name, output = self.names[-1], self.operations[-1]
        right = self.steps[name]
        is_right = all(name in self.matched for name in self.names[-2:-1])
        if not is_right or output.value.shape != right.shape:
            return None
        return WrongStep(name, {}, value=output.value.double(), right=right)

    def _look_at(self, wrong_step: WrongStep) -> None:
        """Set the place and the numbers of a step that is about to be replaced."""
        site = wrong_step.sites.get(wrong_step.name) or next(iter(wrong_step.sites.values()))
        x = self.operations[site.number]
        maker = source(self.operations, site)
        wrong_step.place = self.operations[maker if maker >= 0 else site.number].place
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
        self.operations = self._operations(sites)
        self.forced |= sites
        self.matched = self._matches(self.operations, self.names) | self.forced

    def _operations(self, sites: Mapping[str, Site], last: int | None = None) -> list[Operation]:
        """Run with these steps and those of `forced` replaced; what comes before is known."""
        replaced = {s.place: s.value(self.steps[n]) for n, s in (self.forced | {**sites}).items()}
        start = min((site.number for site in sites.values()), default=0)
        return self._run(replaced, last, self.operations[:start])

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
                candidates = [
                    (len(operations) - 1, x.value, Summary.of(x.value))
                    for x in operations[-1:]
                    if x.name == "output" and x.value.numel() == step.numel()
                ]
            limit = self.limits[name]
            for number, layout in equal(step, self.summaries[name], candidates, limit):
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
        befores = [self.names[position - 1]] if position else []
        masked = "" if best is None else f"{best.name.rpartition('.')[0]}.masked"
        if masked in self.matched:
            befores.append(masked)
        for before in befores:
            trial = self._trial(before)
            step = kind(before)
            if trial is None:
                continue
            is_equal = best is not None and trial.reach == min(best.reach, self.end)
            if is_equal and step in STREAM and self._is_of_next(trial):
                continue
            if (
                best is None
                or trial.reach > best.reach
                or (is_equal and step in (*INSIDE, *STREAM))
            ):
                best = trial
        if best is None:
            return None
        site = best.sites[best.name]
        if best.name in self.matched and kind(best.name) in STREAM and self._is_of_next(best):
            return WrongStep(self.names[position], best.sites)
        if kind(best.name) == "queries" and site.factor != 1 and self._is_multiple(best.name, site):
            return WrongStep(f"{best.name.removesuffix('queries')}scaled", best.sites)
        return Inside(self).cause(best)

    def _is_of_next(self, trial: Trial) -> bool:
        """Whether a right step is changed by what computes the next one, such as by a norm."""
        site = trial.sites[trial.name]
        between = site.number - self.matched[trial.name].number
        if between > CHANGE:
            return True
        after = self.names[self.position[trial.name] + 1]
        operations = self._operations(trial.sites, site.number + self.window)
        match = self._matches(operations, [after], site.number).get(after)
        if match is None:
            return between > FACTOR
        one, other = operations[site.number], operations[match.number]
        return (one.module, one.function) == (other.module, other.function)

    def _is_multiple(self, name: str, site: Site) -> bool:
        value, step = self.operations[site.number].value.double(), site.value(self.steps[name])
        norm = float(value.norm())
        return bool(norm) and difference(step, value * (step.norm() / norm)) <= self.limits[name]

    def _trial(self, name: str) -> Trial | None:
        best: Trial | None = None
        for site in self._candidates(name):
            reach = self.reach({name: site})
            if reach > self.position[name] and (best is None or reach > best.reach):
                best = Trial(name, {name: site}, reach)
            if reach == self.end:
                break
        return best

    def reach(self, sites: Mapping[str, Site]) -> int:
        """The position of the last step that becomes right if these are replaced; otherwise -1.

        -1 also if a step becomes wrong.
        """
        first = min(self.position[name] for name in sites)
        start = min(site.number for site in sites.values())
        last = max(site.number for site in sites.values()) + self.window
        operations = self._operations(sites, last)
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
        earlier = [
            n
            for n in self.names[:position]
            if n in self.matched and not (kind(name) in INPUTS and kind(n) in INPUTS)
        ]
        if ".mlp." in name:  # a program may run the MLP before attention
            attention = f"{block(name)}.attention.", f"{block(name)}.after_attention"
            earlier = [n for n in earlier if not n.startswith(attention)]
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
            factors = (1.0, *self._scales(step)) if kind(name) == "queries" else (1.0,)
            sites += [Site(number, similarity[1], factor=factor) for factor in factors]
            if number in known and kind(name) in STREAM:
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

    def _replace_in_all_layers(self, causes: Sequence[WrongStep]) -> bool:
        """Replace the same steps in the other layers, if more steps become right."""
        everywhere: dict[str, Site] = {}
        for wrong_step in causes:
            everywhere |= self._elsewhere(wrong_step)
        if not everywhere:
            return False
        operations = self._operations(everywhere)
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
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, x in enumerate(self.operations):
            groups.setdefault(_alike(x), []).append(number)
        for name, site in wrong_step.sites.items():
            match = re.search(r"blocks\.(\d+)\.", name)
            same = groups[_alike(self.operations[site.number])]
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


def _alike(x: Operation) -> tuple[object, ...]:
    """What an operation has in common with the same one of another layer."""
    return re.sub(r"\d+", "*", x.module), x.name, x.line, tuple(x.value.shape)
