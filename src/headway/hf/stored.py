"""Models on disk: find one by name or path, and load it with either engine."""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self, final

from headway import engines
from headway.data.tokenizers import Tokenizer
from headway.engines import DType, Name
from headway.hf.folders import Folder
from headway.models.gpt import GPTConfig
from headway.models.seq2seq import Seq2SeqConfig
from headway.training import checkpoints
from headway.training.recipes import Pretrained
from headway.training.runs import Run, run_path
from headway.training.session import Engine


class Loaded(NamedTuple):
    """A model that is ready to use.

    model: in PyTorch a module, in JAX a callable; `model(tokens)` with integers (batch, tokens)
    returns logits (batch, tokens, vocabulary). tokenizer: None if the folder has none.
    """

    model: Any
    tokenizer: Tokenizer | None
    config: GPTConfig | Seq2SeqConfig


@final
@dataclass(frozen=True)
class StoredModel:
    """A model on disk: the last checkpoint of a run, or a Hugging Face folder.

    run: None for a folder. folder: None for a run. rung: the rung of the ladder that is its
    attention, if any.
    """

    path: Path
    config: GPTConfig | Seq2SeqConfig
    rung: str | None = None
    run: Run | None = None
    folder: Folder | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run or a folder. Raises ValueError if it is neither, or damaged."""
        if _is_run(path):
            run = Run(path)
            return cls(path, run.config.model, run.config.rung, run=run)
        folder = Folder.open(path)
        return cls(path, folder.config, folder=folder)

    @property
    def name(self) -> str:
        """The name of its directory, or the name in the Hugging Face cache."""
        if self.path.parent.name == "snapshots":  # models--ORGANIZATION--NAME/snapshots/COMMIT
            return self.path.parent.parent.name.removeprefix("models--").replace("--", "/")
        return self.path.name or self.path.resolve().name

    @property
    def gpt(self) -> GPTConfig:
        """The config. Raises ValueError for a translation model."""
        if not isinstance(self.config, GPTConfig):
            raise ValueError(f"{self.path} is a translation run; see `headway translate --help`")
        return self.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if there is none, or it belongs to another model."""
        source: Any = self.run or self.folder
        tokenizer: Tokenizer = source.tokenizer
        return tokenizer

    @cached_property  # the run may be in training: all parts are of one checkpoint
    def checkpoint(self) -> Path | None:
        """The last checkpoint of a run. Raises ValueError if there is none."""
        return None if self.run is None else checkpoints.latest(self.run.checkpoints)

    @property
    def step(self) -> int | None:
        """The step of the last checkpoint of a run. Raises ValueError if there is none."""
        return None if self.checkpoint is None else checkpoints.step_of(self.checkpoint)

    @property
    def validation(self) -> float | None:
        """The last validation loss of a run, in nats per token."""
        records = [] if self.run is None else self.run.logged()
        losses = [record["validation"] for record in records if record["validation"] is not None]
        return losses[-1] if losses else None

    def pretrained(self) -> Pretrained:
        """The model as the start of a new run. Raises ValueError if it cannot be trained so."""
        config, tokenizer = self.gpt, self.tokenizer
        if config.is_masked or self.rung is not None:
            what = "predicts masked words" if config.is_masked else f"uses the rung {self.rung!r}"
            raise ValueError(f"{self.path} {what}; only multi-head GPTs can be trained further")
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": sorted(tokenizer.eos) or None}
        files = {"generation_config.json": json.dumps(ids) + "\n"}
        if (names := self.path / "tokenizer_config.json").is_file():
            files[names.name] = names.read_text(encoding="utf-8")

        load = partial(self._load, dtype="float32")
        return Pretrained(str(self.path), config, tokenizer, load, files)

    def load(
        self, engine: Name = "torch", device: str | None = None, dtype: DType | None = None
    ) -> Any:
        """Load the model; device: by default the fastest; dtype: by default that of config.json.

        Raises ValueError for weights that are damaged, and what the engine does not support.
        """
        return self._load(engines.engine_named(engine), device, dtype)

    def _load(self, engine: Engine, device: str | None, dtype: DType | None) -> Any:
        if self.folder is None:
            assert self.run is not None
            return engine.load(self.run, self.checkpoint, device, dtype)
        parameters = self.folder.parameters(engine.FRAMEWORK)
        return engine.assemble(self.folder.config, parameters, device, dtype or self.folder.dtype)


def load(
    path: str | Path, engine: Name = "torch", device: str | None = None, dtype: DType | None = None
) -> Loaded:
    """Load a model, its tokenizer and its config, for inference.

    path: a run directory, a Hugging Face folder (config.json, model.safetensors or shards with an
        index, tokenizer.json), or the name of a model in the local Hugging Face cache. GPT-2,
        Llama, Mistral, Qwen 2, Qwen 3 and BERT (masked words) are supported.
    engine: torch or jax. device: by default the fastest one.
    dtype: float32, bfloat16, float16 or float64; by default that of config.json.

    `transformers` is not needed. Raises ValueError for a folder that is damaged or not supported.
    """
    stored = StoredModel.open(_existing(str(path)))
    has_tokenizer = (stored.path / "tokenizer.json").is_file()
    tokenizer = stored.tokenizer if has_tokenizer else None
    return Loaded(stored.load(engine, device, dtype), tokenizer, stored.config)


def find(name: str, runs: str, *, translates: bool | None = False) -> StoredModel:
    """Open a model by the name of a run in the folder `runs`, by its path, or by its name in the
    local Hugging Face cache.

    translates: False if it must not be a translation run, None for any model. A name that is both
    a run and a folder is the run, with a warning. Raises ValueError if there is no such model.
    """
    stored = StoredModel.open(_found(name, runs))
    if translates is False:
        _ = stored.gpt  # raises ValueError for a translation run
    return stored


def _found(name: str, runs: str) -> Path:
    """The directory of a model; see `find`."""
    if Path(name).name != name:
        return _existing(name)
    is_folder = _is_folder(Path(name))
    try:
        path = run_path(name, runs)
    except ValueError:  # not the name of a run
        if is_folder:
            return Path(name)
        raise
    if _is_run(path):
        if is_folder:
            warnings.warn(
                f"{name!r} is the run {path}; for the folder of this name, use ./{name}",
                stacklevel=3,
            )
        return path
    if (Path(name) / "config.json").is_file():
        return Path(name)
    return Run.open(path).path  # raises ValueError with the names of the runs


def _existing(name: str) -> Path:
    """The directory with this path, or of the model with this name in the Hugging Face cache."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.parent.is_dir() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return Run.open(path).path  # raises ValueError with the names of the runs in the folder
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    model = hub / f"models--{name.replace('/', '--')}"
    try:
        return model / "snapshots" / (model / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        raise ValueError(
            f"{name} is neither a directory nor in the Hugging Face cache {hub}; download it with "
            f"`hf download {name}` on a machine with a network"
        ) from None


def _is_run(path: Path) -> bool:
    """Whether a directory is a run: it has checkpoints, or the config.json of a run."""
    if not (path / "config.json").is_file():
        return False
    return (path / "checkpoints").is_dir() or bool({"task", "training"} & _keys(path))


def _is_folder(path: Path) -> bool:
    """Whether a directory has the config.json of a Hugging Face folder."""
    return "model_type" in _keys(path)


def _keys(path: Path) -> set[str]:
    """The keys of config.json; none if it is damaged."""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(values) if isinstance(values, dict) else set()
