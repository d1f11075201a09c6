"""Recipes: TOML files with the settings of a run, which the user's options override."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from headway.data.tokenizers import Tokenizer
from headway.ladder.rungs import rung_named
from headway.models.gpt import GPTConfig, check_settings, overlaid
from headway.models.seq2seq import Seq2SeqConfig
from headway.nearest import check_keys, suggestion
from headway.training.runs import RunConfig
from headway.training.settings import TrainingConfig
from headway.training.task import task_named

Settings = dict[str, Any]

_FOLDER = resources.files("headway.training.recipes")

LENGTH = 256  # default number of tokens in a window of a run that starts from a trained model
TASK, TEXT, TOKENIZER = "next-token", "manual", "bpe"  # the defaults of a recipe
TOP = ("task", "text", "tokenizer", "rung", "model", "training")
_OF_MODEL = {"preset", *(field.name for field in fields(GPTConfig))}


def names() -> list[str]:
    """The names of the recipes that come with Headway."""
    files = (file.name for file in _FOLDER.iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read(recipe: str) -> Settings:
    """Read the settings of a recipe, given by name or as a path that ends in .toml.

    Raises ValueError for an unknown name or key, with the nearest one as a suggestion, and for an
    invalid file.
    """
    if recipe.endswith(".toml"):
        if not Path(recipe).is_file():
            raise ValueError(f"recipe file {recipe!r} not found")
        text = Path(recipe).read_text(encoding="utf-8")
    elif recipe in names():
        text = (_FOLDER / f"{recipe}.toml").read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"unknown recipe {recipe!r}; {suggestion(recipe, names())} Available: "
            f"{', '.join(names())}, or the path of a .toml"
        )
    return check(parsed(text, recipe), f"the recipe {recipe}")


def parsed(text: str, file: str) -> Settings:
    """Parse the text of a TOML file; file: its name for the error. Raises ValueError if invalid."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from error


def check(settings: Settings, what: str) -> Settings:
    """Add missing tables to the settings, and return them.

    Raises ValueError for an unknown key, with the nearest known key as a suggestion.
    """
    check_keys(what, settings, TOP)
    model = GPTConfig if settings.get("task", TASK) == TASK else Seq2SeqConfig
    for table, kind in (("model", model), ("training", TrainingConfig)):
        given = settings.setdefault(table, {})
        if isinstance(given, dict) and table == "model":
            given = {name: value for name, value in given.items() if name != "preset"}
        check_settings(kind, given, f"[{table}] of {what}")
    return settings


def setting_names() -> list[str]:
    """Return the names that `override` accepts for a GPT."""
    names = [name for name in TOP if name not in ("task", "model", "training")]
    names += [field.name for field in fields(TrainingConfig)]
    return [*names, "preset", "heads", *_names(GPTConfig)]


def _names(config: Any, table: str = "") -> list[str]:
    """The names of the settings of a config class; nested ones contain dots."""
    names = []
    for name, kind in get_type_hints(config).items():
        names += _names(kind, f"{table}{name}.") if is_dataclass(kind) else [table + name]
    return names


def override(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return the settings, overridden by the given ones.

    given: values by the name of the field, such as "steps", "width" or "attention.heads" ("heads"
    for short).
    """
    if "rung" in given:  # a rung supports neither rotary positions nor QK-norm
        settings = overlaid(settings, {"model": {"preset": "gpt2"}})
    for name, value in given.items():
        path = ["attention", name] if name == "heads" else name.split(".")
        if path[0] not in TOP:
            path.insert(0, "model" if path[0] in _OF_MODEL else "training")
        for key in reversed(path):
            value = {key: value}
        settings = overlaid(settings, value)
    return settings


@dataclass(frozen=True)
class Pretrained:
    """A trained model that a run starts from.

    name: where it comes from. load: a function of the engine and the device that loads the model in
    float32. files: texts for the run directory, by file name.
    """

    name: str
    config: GPTConfig
    tokenizer: Tokenizer
    load: Callable[[Any, str | None], Any]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """Everything that a new run needs. source: the data, as returned by `Task.read`."""

    config: RunConfig
    tokenizer: Tokenizer
    source: Any
    pretrained: Pretrained | None = None


def _check_start(settings: Settings, pretrained: Pretrained) -> None:
    """Raise ValueError for settings that the pretrained model decides."""
    fixed = [name for name in ("rung", "tokenizer") if settings.get(name) is not None]
    fixed += [f"model.{name}" for name in settings["model"] if name != "dropout"]
    fixed += ["task"] if settings.get("task", TASK) != TASK else []
    if fixed:
        raise ValueError(
            f"the model and the tokenizer come from {pretrained.name}; remove the setting "
            f"{fixed[0]}, or --from"
        )


def plan(settings: Settings, pretrained: Pretrained | None = None) -> Plan:
    """Read the data, train the tokenizer and resolve every setting.

    pretrained: the model to start from, which decides the model and the tokenizer; of the settings
    of the model, only dropout applies. Raises ValueError for invalid settings, before anything slow
    is done.
    """
    name = settings.get("task", TASK)
    task = task_named(name)
    check(settings, "the settings")
    training = TrainingConfig(**settings["training"])
    rung = settings.get("rung")
    if rung is not None:
        rung_named(rung)
    if pretrained is not None:
        _check_start(settings, pretrained)
        length = min(training.length or LENGTH, pretrained.config.context)
        training = replace(training, length=training.length or length)
    if pretrained is None and not settings["model"]:
        raise ValueError("the settings have no [model]; add one, or start from a model with --from")
    if pretrained is None:
        task.model(settings["model"], None)  # checks the settings
    text, kind = settings.get("text", TEXT), settings.get("tokenizer", TOKENIZER)
    source = task.read(text)
    if pretrained is None:
        tokenizer = task.tokenizer(source, kind, settings["model"].get("vocabulary"))
        model = task.model(settings["model"], tokenizer)
    else:
        kind, tokenizer = pretrained.name, pretrained.tokenizer
        dropout = settings["model"].get("dropout", pretrained.config.dropout)
        model = replace(pretrained.config, dropout=dropout)
    if (training.length or 0) > model.context:
        raise ValueError(
            f"length must be at most the context of the model, {model.context:,} "
            f"(got {training.length:,})"
        )
    end_token = task.end_token(source, tokenizer)
    if training.separate_documents and end_token is None:
        raise ValueError(
            f"separate_documents needs a text of several documents, but {text} is one text: give "
            ".jsonl, .parquet or compressed files, or remove the setting"
        )
    config = RunConfig(
        task=name,
        text=text,
        text_sha256=task.sha256_of(source),
        tokenizer=kind,
        tokenizer_sha256=tokenizer.fingerprint,
        rung=rung,
        model=model,
        training=training,
        pretrained=None if pretrained is None else pretrained.name,
        end_token=end_token,
    )
    return Plan(config, tokenizer, source, pretrained)
