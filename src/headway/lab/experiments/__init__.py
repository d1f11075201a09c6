"""An experiment: a question, and the runs whose losses answer it. It is a TOML file such as

question = "Is sparsemax as good as softmax?"
quick = { seeds = 3, steps = 300 }
full = { seeds = 5, steps = 2000 }

recipe = "lab"                  # the settings of all runs; this is the default
model.layers = 2                # changes to the recipe

[[variants]]
name = "softmax"

[[variants]]
name = "sparsemax"
against = "softmax"             # by default the first variant; "" for no comparison
model.normalizer = "sparsemax"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from headway.engines import Name
from headway.models.gpt import overlaid
from headway.nearest import check_keys, suggestion
from headway.training import recipes
from headway.training.recipes import Settings
from headway.training.runs import RunConfig
from headway.training.task import task_named

_FOLDER = resources.files("headway.lab.experiments")
_TOP = ("question", "recipe", "quick", "full", "variants", *recipes.TOP)
RECIPE = "lab"
_VARIANT = ("name", "against", *recipes.TOP)
SEEDS = {"quick": 3, "full": 5}  # by default


@dataclass(frozen=True)
class Variant:
    """A variant: the settings of a recipe.

    against: the variant that it is compared with, or None. apart: why it is not ranked, or "".
    """

    name: str
    settings: Settings
    against: str | None = None
    apart: str = ""


@dataclass(frozen=True)
class Experiment:
    """A question, its variants, and the number of seeds of each. size: quick or full."""

    name: str
    question: str
    variants: Sequence[Variant]
    seeds: int
    size: str = "quick"
    engine: Name = "torch"

    @property
    def folder(self) -> str:
        """The folder of the report."""
        text = str(self.variants[0].settings.get("text", recipes.TEXT))
        apart = "" if self.engine == "torch" else f"-{self.engine}"
        return _slug(f"{self.name}-{Path(text).stem}-{self.size}{apart}")

    def with_text(self, text: str) -> Experiment:
        """Return the experiment on another text."""
        variants = [replace(v, settings={**v.settings, "text": text}) for v in self.variants]
        return replace(self, variants=variants)

    def with_budget(self, seeds: int | None, steps: int | None) -> Experiment:
        """Return the experiment with other numbers of seeds and steps; None keeps a number."""
        variants = self.variants
        if steps is not None:
            variants = [
                replace(v, settings=recipes.override(v.settings, {"steps": steps}))
                for v in variants
            ]
        seeds = self.seeds if seeds is None else seeds
        return _checked(replace(self, seeds=seeds, variants=variants))

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All runs: all variants with the first seed, then with the next.

        Raises ValueError for invalid settings and for a text that is too short.
        """
        configs = []
        for variant in self.variants:
            plan = recipes.plan(variant.settings)
            task = task_named(plan.config.task)
            task.examples(plan.source, plan.tokenizer, plan.config, lambda more, total: None)
            configs.append((variant, plan.config))
        return jobs_of(configs, self.seeds, self.engine)


class Job(NamedTuple):
    """A run of a variant with a seed. folder: unique to these settings."""

    variant: str
    seed: int
    settings: Settings
    folder: str
    engine: Name = "torch"


def jobs_of(
    configs: Sequence[tuple[Variant, RunConfig]], seeds: int, engine: Name = "torch"
) -> tuple[Job, ...]:
    """Return all runs: all variants with the first seed, then with the next."""
    jobs = []
    apart = "" if engine == "torch" else f"-{engine}"
    for seed, (variant, config) in product(range(seeds), configs):
        config = replace(config, training=replace(config.training, seed=seed))
        digest = hashlib.sha256(config.to_json().encode()).hexdigest()[:8]
        settings = recipes.override(variant.settings, {"seed": seed})
        folder = f"{_slug(variant.name)}-{seed}-{digest}{apart}"
        jobs.append(Job(variant.name, seed, settings, folder, engine))
    return tuple(jobs)


def _slug(name: str) -> str:
    return "-".join(re.findall(r"\w+", name))


def names() -> list[str]:
    """Return the names of the experiments that come with Headway."""
    files = (file.name for file in _FOLDER.iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read(name: str, size: str) -> Experiment:
    """Read an experiment by its name, or by the path of a .toml file. size: quick or full.

    Raises ValueError for an unknown name or key, with the nearest one, and for invalid variants.
    """
    if name.endswith(".toml"):
        text = Path(name).read_text(encoding="utf-8")
    elif name in names():
        text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"unknown experiment {name!r}; {suggestion(name, names())} Available: "
            f"{', '.join(names())}, or the path of a .toml"
        )
    content = recipes.parsed(text, name)
    what = f"the experiment {name}"
    check_keys(what, content, _TOP)
    for key in ("question", "variants"):
        if key not in content:
            raise ValueError(f"{what} has no {key!r}")
    budget = content.get(size, {})
    if not isinstance(budget, dict):
        raise ValueError(
            f"{size!r} of {what} must be a table such as {size} = {{ seeds = 3, steps = 600 }}"
        )
    check_keys(f"{size!r} of {what}", budget, ("seeds", "steps"))
    changes = {key: value for key, value in content.items() if key in recipes.TOP}
    base = overlaid(recipes.read(content.get("recipe", RECIPE)), recipes.check(changes, what))
    if "steps" in budget:
        base["training"]["steps"] = budget["steps"]
    variants = [*_variants(content["variants"], base, what)]
    seeds = budget.get("seeds", SEEDS[size])
    stem = Path(name).name.removesuffix(".toml")
    return _checked(Experiment(stem, content["question"], variants, seeds, size))


def of_recipes(files: Sequence[str], size: str) -> Experiment:
    """Compare two or more recipes with the first one."""
    stems = [Path(file).name.removesuffix(".toml") for file in files]
    names = stems if len(set(stems)) == len(stems) else files
    variants = [
        Variant(name, recipes.read(file), against=None if name == names[0] else names[0])
        for name, file in zip(names, files, strict=True)
    ]
    question = "Which of these recipes is better?"
    return _checked(Experiment("-".join(stems), question, variants, SEEDS[size], size))


def of_values(assignments: Sequence[str], recipe: str, size: str) -> Experiment:
    """Compare all combinations of values: heads=2,4 and width=32,64 give four variants.

    The first variant is the baseline. Raises ValueError for an invalid assignment and for an
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
    return _checked(Experiment("-".join(choices), question, variants, SEEDS[size], size))


def _value(text: str) -> Any:
    """Parse a number, true or false as in TOML; anything else is a string."""
    try:
        return recipes.parsed(f"value = {text}", "")["value"]
    except ValueError:
        return text


def is_experiment(name: str) -> bool:
    """Whether this is an experiment, not a recipe: a name, or a file with variants."""
    if not name.endswith(".toml"):
        return True
    return "variants" in recipes.parsed(Path(name).read_text(encoding="utf-8"), name)


def _variants(tables: Any, base: Settings, what: str) -> Iterator[Variant]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{what} must list its variants as [[variants]]")
    first = tables[0].get("name") if tables else None
    for table in tables:
        check_keys(f"a variant of {what}", table, _VARIANT)
        if "name" not in table:
            raise ValueError(f"a variant of {what} has no name")
        changes = {key: value for key, value in table.items() if key in recipes.TOP}
        settings = overlaid(base, recipes.check(changes, f"{table['name']!r} of {what}"))
        against = table.get("against", first if table["name"] != first else "")
        yield Variant(table["name"], settings, against or None)


def _checked(experiment: Experiment) -> Experiment:
    """Return the experiment; raises ValueError for variants that cannot be compared."""
    by_name = {variant.name: variant for variant in experiment.variants}
    if not 1 < len(by_name) == len(experiment.variants):
        raise ValueError(f"{experiment.name} needs at least two variants with different names")
    for variant in experiment.variants:
        if variant.against is None:
            continue
        if variant.against not in by_name:
            raise ValueError(
                f"{variant.name!r} is compared with the unknown variant {variant.against!r}; "
                f"{suggestion(variant.against, by_name)}"
            )
        if _unit(variant.settings) != _unit(by_name[variant.against].settings):
            raise ValueError(
                f"the losses of {variant.name!r} and {variant.against!r} cannot be compared, "
                "because their texts or tokenizers differ"
            )
    if experiment.seeds < 1:
        raise ValueError(f"seeds of {experiment.name} must be >= 1 (got {experiment.seeds})")
    return experiment


def _unit(settings: Settings) -> tuple[Any, ...]:
    """Return the settings that must be equal for losses to be comparable."""
    text, kind = settings.get("text", recipes.TEXT), settings.get("tokenizer", recipes.TOKENIZER)
    return text, kind, settings["model"].get("vocabulary") if kind == "bpe" else None
