"""A run directory: the resolved config, the tokenizer, the log and the checkpoints.

runs/demo/config.json  tokenizer.json  log.jsonl  checkpoints/step-000500/
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, final

from headway import cache
from headway.data.tokenizers import Tokenizer
from headway.models.gpt import GPTConfig, config_from, flat
from headway.models.seq2seq import Seq2SeqConfig
from headway.nearest import check_keys
from headway.training.settings import TrainingConfig

# The version of the format of config.json and of the parameters' names. Headway 0.1 wrote format 1,
# without this number.
FORMAT = 2


class OtherFormat(ValueError):  # noqa: N818 - clear without the suffix Error
    """The run was written by another version of Headway, which the message names."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    task: a name in `training.task.TASKS`. text, text_sha256: the name and the SHA-256 of the data
    (a text, or pairs). tokenizer, tokenizer_sha256: likewise. rung: the rung of the ladder that the
    GPT uses as its attention; None for multi-head attention. pretrained: the Hugging Face folder or
    the run whose weights the run started from, if any. end_token: the token after each document of
    the text; None if the text has no documents.
    """

    task: str
    text: str
    text_sha256: str
    tokenizer: str
    tokenizer_sha256: str
    rung: str | None
    model: GPTConfig | Seq2SeqConfig
    training: TrainingConfig
    pretrained: str | None = None
    end_token: int | None = None

    def to_json(self) -> str:
        """Return the config as JSON, with sorted keys and the number of the format."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a config from JSON.

        Raises ValueError for an unknown key, with the nearest one as a suggestion; ValueError,
        TypeError or KeyError for a missing key; `OtherFormat` for the format of another version.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it must contain a JSON object")
        number = values.pop("format", 1)
        if number != FORMAT:
            writer = "Headway 0.1" if number == 1 else f"a later version (format {number})"
            raise OtherFormat(
                f"was written by {writer}, but this version reads format {FORMAT} only; use the "
                "version that wrote it, or train the run again"
            )
        check_keys(cls.__name__, values, (field.name for field in fields(cls)))
        kind = GPTConfig if values.get("task") == "next-token" else Seq2SeqConfig
        values["model"] = config_from(kind, values["model"], "model")
        values["training"] = config_from(TrainingConfig, values["training"], "training")
        return cls(**values)

    @property
    def gpt(self) -> GPTConfig:
        """The model of the task next-token."""
        assert isinstance(self.model, GPTConfig)
        return self.model

    @property
    def seq2seq(self) -> Seq2SeqConfig:
        """The model of the other tasks."""
        assert isinstance(self.model, Seq2SeqConfig)
        return self.model

    @property
    def translates(self) -> bool:
        """Whether the model is for pairs of sentences, not for a text."""
        return self.task != "next-token"

    @property
    def window(self) -> int:
        """The number of tokens in a window of text."""
        return self.training.length or self.model.context

    @property
    def separator(self) -> int | None:
        """The token whose documents are masked from each other; None if they are not."""
        return self.end_token if self.training.separate_documents else None

    def flat(self) -> dict[str, Any]:
        """Return all settings by name; nested ones have names such as "attention.heads"."""
        settings = {name: value for name, value in vars(self).items() if not is_dataclass(value)}
        return {**flat(self.model), **flat(self.training), **settings}

    def require_unchanged(self, given: Mapping[str, Any]) -> None:
        """Raise ValueError for a setting that differs from the run's."""
        known = self.flat()
        for name, value in given.items():
            now = known.get("attention.heads" if name == "heads" else name)
            if now != value:
                raise ValueError(
                    f"{name} cannot change when a run is resumed: it is {now!r} (got {value!r}); "
                    "remove the option, or start a new run"
                )

    def extended(self, steps: int) -> Self:
        """Return the config with more steps. Raises ValueError for fewer steps than before."""
        if steps < self.training.steps:
            raise ValueError(
                f"steps can only grow when a run is resumed: it has {self.training.steps:,} "
                f"(got {steps:,})"
            )
        return replace(self, training=replace(self.training, steps=steps))

    def require_same(self, other: RunConfig, where: str) -> None:
        """Raise ValueError if another config differs; the message names the first such field.

        where: where the other config comes from, for the message.
        """
        for name, value in self.flat().items():
            if other.flat()[name] != value:
                raise ValueError(
                    f"{name} has changed: it is {value!r} in the run and {other.flat()[name]!r} "
                    f"{where}; restore the original, or start a new run"
                )


@final
class Run:
    """A run directory on disk. checkpoints: the folder of its checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self._log = path / "log.jsonl"

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        tokenizer: Tokenizer,
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Create a run directory; if this fails, no directory is left.

        files: further texts to write, by file name. Raises ValueError if the directory exists.
        """
        must_be_free(path)
        temporary = path.with_name(f".creating-{path.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (temporary / "config.json").write_text(config.to_json(), encoding="utf-8")
        tokenizer.save(temporary / "tokenizer.json")
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        temporary.rename(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run. Raises ValueError, listing the available runs, if not found."""
        if (path / "config.json").is_file():
            return cls(path)
        others = [run.path.name for run in runs_in(path.parent)]
        known = f"available runs: {', '.join(others)}" if others else "`headway train` creates one"
        raise ValueError(f"run {path.name!r} not found in {path.parent}; {known}")

    @property
    def config(self) -> RunConfig:
        """The config of the run. Raises ValueError if the file is damaged or has another format."""
        file = self.path / "config.json"
        try:
            return RunConfig.from_json(file.read_text(encoding="utf-8"))
        except OtherFormat as error:
            raise OtherFormat(f"{file} {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    def rewrite(self, config: RunConfig, files: Mapping[str, str]) -> None:
        """Replace the config and other text files of a run, given by file name."""
        for name, text in {"config.json": config.to_json(), **files}.items():
            with cache.atomic(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run. Raises ValueError if the file is not the one of the config."""
        file = self.path / "tokenizer.json"
        config = self.config
        special = config.pretrained is not None
        tokenizer = Tokenizer.load(file, special=special, end=config.end_token)
        if tokenizer.fingerprint != config.tokenizer_sha256:
            raise ValueError(
                f"tokenizer_sha256 has changed: {file} is not the tokenizer that the run was "
                "trained with; restore the original file, or start a new run"
            )
        return tokenizer

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to log.jsonl."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def logged(self) -> list[dict[str, Any]]:
        """Return the records of log.jsonl; an incomplete last line is ignored."""
        if not self._log.exists():
            return []
        lines = self._log.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def forget_after(self, step: int) -> None:
        """Remove the steps after this one from log.jsonl, because they will be repeated."""
        lines = (json.dumps(record) for record in self.logged() if record["step"] <= step)
        with cache.atomic(self._log) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def new_path(name: str | None, folder: str) -> Path:
    """Return the path of a new run with this name, by default run-N with the first free number N.

    Raises ValueError for an invalid name and if the run exists.
    """
    if name is None:
        paths = (Path(folder) / f"run-{number}" for number in count(1))
        return next(path for path in paths if not path.exists())
    path = run_path(name, folder)
    must_be_free(path)
    return path


def run_path(name: str, folder: str) -> Path:
    """Return the path of the run with this name. Raises ValueError for an invalid name."""
    if not re.fullmatch(r"[\w][\w.-]*", name) or ".." in name:
        raise ValueError(f"invalid run name {name!r}; use letters, digits, '-', '_' and single '.'")
    return Path(folder) / name


def must_be_free(path: Path) -> None:
    """Raise ValueError when the run exists."""
    if path.exists():
        raise ValueError(
            f"run {path} already exists; choose another --name, use --resume, or remove the run"
        )


def find(run: str, folder: str, translates: bool | None = False) -> Run:
    """Open a run, given by its name in a folder or by its path.

    translates: True if it must be a translation run, False if it must not, None for any run.
    Raises ValueError if the run is not found or is not of this kind.
    """
    opened = Run.open(Path(run) if Path(run).name != run else run_path(run, folder))
    if translates is False and opened.config.translates:
        raise ValueError(f"{opened.path} is a translation run; see `headway translate --help`")
    if translates and not opened.config.translates:
        raise ValueError(f"{opened.path} is not a translation run; use `headway generate`")
    return opened


def runs_in(folder: Path) -> list[Run]:
    """The runs in a folder, sorted by name."""
    paths = sorted(file.parent for file in folder.glob("*/config.json"))
    return [Run(path) for path in paths if not path.name.startswith(".")]
