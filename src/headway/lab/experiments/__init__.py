"""An experiment: a question, and the runs whose losses answer it. A small TOML file, such as

question = "Is sparsemax as good as softmax?"
quick = { seeds = 3, steps = 300 }
full = { seeds = 5, steps = 2000 }

recipe = "lab"                  # what all runs have in common: by default this one
model.layers = 2                # and what is different from it, as in a recipe

[[variants]]
name = "softmax"

[[variants]]                    # what is different about it, and what it is compared with:
name = "sparsemax"              # by default the first; "" is nothing
against = "softmax"
model.normalizer = "sparsemax"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from headway.data.batches import prepared, split
from headway.engines import Name
from headway.models.gpt import overlaid
from headway.nearest import check_keys
from headway.training import recipes
from headway.training.recipes import Settings
from headway.training.runs import RunConfig

_TOP = ("question", "recipe", "quick", "full", "variants", *recipes.TOP)
RECIPE = "lab"
_VARIANT = ("name", "against", *recipes.TOP)
_SEEDS = {"quick": 3, "full": 5}


@dataclass(frozen=True)
class Variant:
    """One way to train: the settings of a recipe.

    against: the variant that it is compared with; None for one that stands for itself.
    apart: why it is shown apart and never ranked; empty for all others.
    """

    name: str
    settings: Settings
    against: str | None = None
    apart: str = ""


@dataclass(frozen=True)
class Experiment:
    """A question, its variants, and how many seeds each of them gets.

    size: quick or full. engine: in which they are trained.
    """

    name: str
    question: str
    variants: Sequence[Variant]
    seeds: int
    size: str = "quick"
    engine: Name = "torch"

    @property
    def folder(self) -> str:
        """A name for the report: of the experiment, the text and the size."""
        text = str(self.variants[0].settings.get("text", recipes.TEXT))
        apart = "" if self.engine == "torch" else f"-{self.engine}"
        return _slug(f"{self.name}-{Path(text).stem}-{self.size}{apart}")

    def with_text(self, text: str) -> Experiment:
        """The same on another text."""
        changed = [
            replace(each, settings={**each.settings, "text": text}) for each in self.variants
        ]
        return replace(self, variants=changed)

    def with_budget(self, seeds: int | None, steps: int | None) -> Experiment:
        """The same with other numbers of seeds and steps; None leaves a number as it is."""
        changed = replace(self, seeds=self.seeds if seeds is None else seeds)
        if steps is None:
            return _whole(changed)
        variants = [
            replace(variant, settings=recipes.override(variant.settings, {"steps": steps}))
            for variant in self.variants
        ]
        return _whole(replace(changed, variants=variants))

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Every run: all variants with the first seed, then with the next.

        Raises ValueError for settings that make no sense, and for a text that is too short.
        """
        configs = []
        for variant in self.variants:
            plan = recipes.plan(variant.settings)
            split(prepared(plan.source, plan.tokenizer), plan.config.model.context)
            configs.append((variant, plan.config))
        return tuple(
            _job(variant, config, seed, self.engine)
            for seed in range(self.seeds)
            for variant, config in configs
        )


class Job(NamedTuple):
    """A run: of a variant, with a seed. folder: a name that no other settings have."""

    variant: str
    seed: int
    settings: Settings
    folder: str
    engine: Name = "torch"


def _job(variant: Variant, config: RunConfig, seed: int, engine: Name) -> Job:
    config = replace(config, training=replace(config.training, seed=seed))
    digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:8]
    settings = recipes.override(variant.settings, {"seed": seed})
    apart = "" if engine == "torch" else f"-{engine}"
    folder = f"{_slug(variant.name)}-{seed}-{digest}{apart}"
    return Job(variant.name, seed, settings, folder, engine)


def _slug(name: str) -> str:
    return "-".join(re.findall(r"\w+", name))


def names() -> list[str]:
    """The experiments that come with Headway."""
    files = (file.name for file in _folder().iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read(name: str, size: str) -> Experiment:
    """An experiment by its name, or by the path of a .toml. size: quick or full.

    Raises ValueError for an unknown name or key, with the nearest one, and for variants that make
    no sense.
    """
    if name.endswith(".toml"):
        text = Path(name).read_text(encoding="utf-8")
    elif name in names():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    else:
        near = get_close_matches(name, names(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no experiment {name!r}; did you mean {near!r}? There are {', '.join(names())}; "
            "or give the path of a .toml"
        )
    found = recipes.parsed(text, name)
    what = f"the experiment {name}"
    check_keys(what, found, _TOP)
    for key in ("question", "variants"):
        if key not in found:
            raise ValueError(f"{what} has no {key!r}")
    budget = found.get(size, {})
    if not isinstance(budget, dict):
        raise ValueError(f"{size!r} of {what} is a table: {size} = {{ seeds = 3, steps = 600 }}")
    check_keys(f"{size!r} of {what}", budget, ("seeds", "steps"))
    own = {key: value for key, value in found.items() if key in recipes.TOP}
    base = overlaid(recipes.read(found.get("recipe", RECIPE)), recipes.check(own, what))
    if "steps" in budget:
        base["training"]["steps"] = budget["steps"]
    variants = [*_variants(found["variants"], base, what)]
    seeds = budget.get("seeds", _SEEDS[size])
    stem = Path(name).name.removesuffix(".toml")
    return _whole(Experiment(stem, found["question"], variants, seeds, size))


def of_recipes(files: Sequence[str], size: str) -> Experiment:
    """Any two or more recipes, each compared with the first."""
    stems = [Path(file).name.removesuffix(".toml") for file in files]
    called = stems if len(set(stems)) == len(stems) else files
    variants = [
        Variant(name, recipes.read(file), against=None if name == called[0] else called[0])
        for name, file in zip(called, files, strict=True)
    ]
    question = "Which of these recipes is better?"
    return _whole(Experiment("-".join(stems), question, variants, _SEEDS[size], size))


def of_values(assignments: Sequence[str], recipe: str, size: str) -> Experiment:
    """A recipe with every combination of values: heads=2,4 and width=32,64 give four variants.

    Each variant is compared with the first. Raises ValueError for an invalid assignment and for an
    unknown setting, with the nearest one.
    """
    choices: dict[str, list[str]] = {}
    for assignment in assignments:
        name, equals, values = assignment.partition("=")
        if not (name and equals and all(values.split(","))):
            raise ValueError(f"--set must be NAME=VALUE,VALUE (got {assignment!r})")
        choices[name] = values.split(",")
    check_keys("--set", choices, recipes.setting_names())
    base = recipes.read(recipe)
    variants: list[Variant] = []
    for combination in product(*choices.values()):
        texts = dict(zip(choices, combination, strict=True))
        settings = recipes.override(base, {name: _value(text) for name, text in texts.items()})
        label = " ".join(f"{name}={text}" for name, text in texts.items())
        variants.append(Variant(label, settings, variants[0].name if variants else None))
    question = f"What do {' and '.join(choices)} change?"
    return _whole(Experiment("-".join(choices), question, variants, _SEEDS[size], size))


def _value(text: str) -> Any:
    """A number, true or false as in TOML; anything else is a string."""
    try:
        return recipes.parsed(f"value = {text}", "")["value"]
    except ValueError:
        return text


def is_experiment(name: str) -> bool:
    """Whether this is an experiment, not a recipe: a name of ours, or a file with variants."""
    if not name.endswith(".toml"):
        return True
    return "variants" in recipes.parsed(Path(name).read_text(encoding="utf-8"), name)


def _variants(found: Any, base: Settings, what: str) -> Iterator[Variant]:
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(f"{what} lists its variants as [[variants]]")
    first = found[0].get("name") if found else None
    for each in found:
        check_keys(f"a variant of {what}", each, _VARIANT)
        if "name" not in each:
            raise ValueError(f"a variant of {what} has no name")
        own = {key: value for key, value in each.items() if key in recipes.TOP}
        settings = overlaid(base, recipes.check(own, f"{each['name']!r} of {what}"))
        against = each.get("against", first if each["name"] != first else "")
        yield Variant(each["name"], settings, against or None)


def _whole(experiment: Experiment) -> Experiment:
    """The same. Raises ValueError for variants that cannot be compared."""
    known = [each.name for each in experiment.variants]
    if len(known) < 2 or len(set(known)) < len(known):
        raise ValueError(f"{experiment.name} compares two variants or more, each with its own name")
    for each in experiment.variants:
        if each.against is not None and each.against not in known:
            near = get_close_matches(each.against, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{each.name!r} is compared with {each.against!r}: is it {near!r}?")
        if each.against is not None:
            other = next(one for one in experiment.variants if one.name == each.against)
            if _measure(each.settings) != _measure(other.settings):
                raise ValueError(
                    f"the losses of {each.name!r} and {each.against!r} are of different texts or "
                    "tokens, and cannot be compared"
                )
    if experiment.seeds < 1:
        raise ValueError(f"{experiment.name} takes 1 seed or more")
    return experiment


def _measure(settings: Settings) -> tuple[Any, ...]:
    """What two losses must have in common to be compared."""
    text, kind = settings.get("text", recipes.TEXT), settings.get("tokenizer", recipes.TOKENIZER)
    return text, kind, settings["model"].get("vocabulary") if kind == "bpe" else None


def _folder() -> Any:
    return resources.files("headway.lab.experiments")
