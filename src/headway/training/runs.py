"""A run directory: the resolved config, the tokenizer, the log and the checkpoints.

runs/demo/config.json  tokenizer.json  log.jsonl  checkpoints/step-000500/model.safetensors
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypeVar, final

from headway.models.gpt import GPTConfig
from headway.tokenizers import Tokenizer
from headway.training.settings import TrainingConfig

_Config = TypeVar("_Config", GPTConfig, TrainingConfig)


@dataclass(frozen=True)
class RunConfig:
    """All that decides a run. rung: of the ladder, in the attention's place; else multi-head."""

    text: str
    tokenizer: str
    rung: str | None
    model: GPTConfig
    training: TrainingConfig

    def to_json(self) -> str:
        """As JSON, keys sorted."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Back again. Raises ValueError for an unknown or missing key, naming the nearest."""
        found = json.loads(text)
        _check_keys(cls.__name__, found, [field.name for field in fields(cls)])
        found["model"] = _config(GPTConfig, found["model"])
        found["training"] = _config(TrainingConfig, found["training"])
        return cls(**found)


@final
class Run:
    """A run directory on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: RunConfig, tokenizer: Tokenizer) -> Self:
        """A new directory. Raises ValueError when there is one already."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise ValueError(
                f"there is a run {path} already: choose another --name, or remove it"
            ) from None
        run = cls(path)
        (path / "config.json").write_text(config.to_json(), encoding="utf-8")
        tokenizer.save(path / "tokenizer.json")
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing one. Raises ValueError when there is none, naming those that there are."""
        if (path / "config.json").is_file():
            return cls(path)
        others = sorted(file.parent.name for file in path.parent.glob("*/config.json"))
        known = f"; there are {', '.join(others)}" if others else "; `headway train` makes one"
        raise ValueError(f"no run {path}{known}")

    @property
    def config(self) -> RunConfig:
        """What decided the run. Raises ValueError when the file is damaged."""
        file = self.path / "config.json"
        try:
            return RunConfig.from_json(file.read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return Tokenizer.load(self.path / "tokenizer.json")

    @property
    def checkpoints(self) -> Path:
        """Where the weights are."""
        return self.path / "checkpoints"

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to log.jsonl."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def run_path(name: str, folder: str) -> Path:
    """Where the run of this name lies. Raises ValueError for a name that is no plain name."""
    if not re.fullmatch(r"[\w][\w.-]*", name) or ".." in name:
        raise ValueError(
            f"{name!r} is no name for a run: letters, digits, '-', '_' and single '.' make one"
        )
    return Path(folder) / name


def _config(kind: type[_Config], found: dict[str, Any]) -> _Config:
    _check_keys(kind.__name__, found, [field.name for field in fields(kind)])
    return kind(**found)


def _check_keys(what: str, found: Mapping[str, Any], known: list[str]) -> None:
    for name in found:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{what} has no {name!r}; did you mean {near!r}?")
