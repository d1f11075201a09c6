"""Recipes: what to train, as a TOML file; flags override it, and a misspelt key is an error."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headway.data import corpora
from headway.data.tokenizers import Tokenizer, digest
from headway.ladder.rungs import rung_named
from headway.models.gpt import GPTConfig, check_settings, overlaid, preset
from headway.nearest import check_keys
from headway.training.runs import RunConfig
from headway.training.settings import TrainingConfig

Settings = dict[str, Any]

TEXT, TOKENIZER = "manual", "bpe"  # where a recipe says nothing
TOP = ("text", "tokenizer", "rung", "model", "training")
# The flags that are settings of the model, and where they are in the table [model].
_OF_MODEL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (name,) for name in ("preset", "vocabulary", "context", "width", "layers", "dropout")}
    | {"heads": ("attention", "heads")}
)


def names() -> list[str]:
    """The recipes that come with Headway."""
    files = (file.name for file in _folder().iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read(recipe: str) -> Settings:
    """The settings of a recipe, by its name or as a path that ends in .toml.

    Raises ValueError for an unknown name or key, with the nearest one, and for a file that is no
    TOML.
    """
    if recipe.endswith(".toml"):
        text = Path(recipe).read_text(encoding="utf-8")
    elif recipe in names():
        text = (_folder() / f"{recipe}.toml").read_text(encoding="utf-8")
    else:
        near = get_close_matches(recipe, names(), n=1, cutoff=0.0)[0]
        raise ValueError(f"no recipe {recipe!r}; did you mean {near!r}? Or give a path to a .toml")
    return check(parsed(text, recipe), f"the recipe {recipe}")


def parsed(text: str, file: str) -> Settings:
    """What a TOML file says. Raises ValueError when it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML: {error}") from error


def check(settings: Settings, what: str) -> Settings:
    """The same, with both tables. Raises ValueError for an unknown key, with the nearest one."""
    check_keys(what, settings, TOP)
    for table, kind in (("model", GPTConfig), ("training", TrainingConfig)):
        given = settings.setdefault(table, {})
        if isinstance(given, dict) and table == "model":
            given = {name: value for name, value in given.items() if name != "preset"}
        check_settings(kind, given, f"[{table}] of {what}")
    return settings


def override(settings: Settings, flags: Mapping[str, Any]) -> Settings:
    """The settings with flags on top: each flag is a key of one of the tables."""
    if "rung" in flags:  # a rung has neither the rotary positions nor the QK-norm
        settings = overlaid(settings, {"model": {"preset": "gpt2"}})
    for name, value in flags.items():
        path: tuple[str, ...] = (name,) if name in TOP else ("training", name)
        if name in _OF_MODEL:
            path = ("model", *_OF_MODEL[name])
        for key in reversed(path):
            value = {key: value}
        settings = overlaid(settings, value)
    return settings


@dataclass(frozen=True)
class Plan:
    """What a new run begins with."""

    config: RunConfig
    tokenizer: Tokenizer
    corpus: str


def plan(settings: Settings) -> Plan:
    """Read the text, learn the tokenizer and resolve every setting.

    Raises ValueError for settings that make no sense, before anything slow is done.
    """
    training = TrainingConfig(**settings["training"])
    rung = settings.get("rung")
    if rung is not None:
        rung_named(rung)
    _model(settings["model"], vocabulary=1)  # its sizes alone
    text, kind = settings.get("text", TEXT), settings.get("tokenizer", TOKENIZER)
    corpus = corpora.read(text)
    tokenizer = _tokenizer(kind, settings["model"].get("vocabulary"), corpus)
    config = RunConfig(
        text=text,
        text_sha256=digest(corpus),
        tokenizer=kind,
        tokenizer_sha256=tokenizer.fingerprint,
        rung=rung,
        model=_model(settings["model"], tokenizer.vocabulary),
        training=training,
    )
    return Plan(config, tokenizer, corpus)


def _model(model: Mapping[str, Any], vocabulary: int) -> GPTConfig:
    """The model of the table [model], its preset written out, for the vocabulary that there is."""
    own = {name: value for name, value in model.items() if name not in ("preset", "vocabulary")}
    return preset(model.get("preset", "gpt2"), own, vocabulary=vocabulary)


@lru_cache(maxsize=8)  # the lab asks for each of its variants
def _tokenizer(kind: str, vocabulary: int | None, corpus: str) -> Tokenizer:
    if kind == "bpe":
        return Tokenizer.byte_pairs(corpus, 1024 if vocabulary is None else vocabulary)
    if kind == "char":
        return Tokenizer.characters(corpus)
    if kind == "byte":
        return Tokenizer.utf8_bytes()
    if Path(kind).is_file():
        return Tokenizer.load(Path(kind))
    raise ValueError(
        f"a tokenizer is bpe, char, byte or the path of a tokenizer.json: {kind!r} is none"
    )


def _folder() -> Any:
    return resources.files("headway.training.recipes")
