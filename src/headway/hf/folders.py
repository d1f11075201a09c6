"""A folder in Hugging Face's format: config.json, safetensors and tokenizer.json.

Everything is checked before any weight is read: the config, the headers of the files, and the name,
shape and type of every tensor. Nothing in a folder is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self, final

from safetensors import SafetensorError, safe_open

from headway.attention.arrays import Array, namespace
from headway.data.tokenizers import Tokenizer
from headway.hf import configs
from headway.hf.configs import Family
from headway.hf.names import Location, location
from headway.models.gpt import GPTConfig, shapes

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HEADER = 2**24  # maximum bytes of the header of a file, enough for 100,000 tensors
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@final
@dataclass(frozen=True)
class Folder:
    """A checked folder.

    dtype: the number format of config.json; if it names none, that of the embedding. files: for
    each file, the parameters in it: our name and its location. head: for a model whose output layer
    is tied to the embedding, the file and the name of a second copy of the matrix, if there is one.
    """

    path: Path
    family: Family
    config: GPTConfig
    dtype: str
    files: Mapping[Path, Mapping[str, Location]]
    head: tuple[Path, str] | None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check a folder. Raises ValueError if it is damaged, incomplete or not supported."""
        values = _json(path / "config.json")
        try:
            family, config = configs.read(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        dtype, files, head = _located(path, family, config)
        named = str(values.get("dtype") or values.get("torch_dtype")).removeprefix("torch.")
        return cls(path, family, config, named if named in _FLOATS.values() else dtype, files, head)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if there is none or it does not fit the model."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"{self.path} has no tokenizer.json; write it with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder) of transformers"
            )
        tokenizer = Tokenizer.load(file)
        if tokenizer.vocabulary > self.config.vocabulary:
            raise ValueError(
                f"{file} has {tokenizer.vocabulary:,} tokens, but the model knows only "
                f"{self.config.vocabulary:,}; use the tokenizer of this model"
            )
        special = tokenizer.with_special_tokens("")
        if special.size and not 0 <= special.min() <= special.max() < self.config.vocabulary:
            raise ValueError(
                f"{self.path}: the special tokens {special.tolist()} are not among the "
                f"{self.config.vocabulary:,} tokens of the model"
            )
        if tokenizer.bos is not None and not 0 <= tokenizer.bos < self.config.vocabulary:
            tokenizer.bos = None  # the default of a family, and not a token of this model
        return tokenizer

    def parameters(self, framework: str) -> Iterator[tuple[str, Array]]:
        """Yield the name and the value of each parameter, read file by file.

        framework: "pt" for PyTorch, whose tensors are views of the memory-mapped file, or "flax"
        for JAX. Raises ValueError for a value that is NaN or infinite.
        """
        names = self.family.names
        # A view would keep the complete file in memory, next to the transposed parameters.
        copies = any(location.is_transposed for location in names.table.values())
        for file, locations in self.files.items():
            with safe_open(file, framework) as opened:
                stored = {names.usual(name): name for name in [*opened.keys()]}
                for name, where in locations.items():
                    value = where.read(opened.get_tensor(stored[where.name]))
                    xp = namespace(value)
                    # Two numbers, because an array of booleans would take more memory.
                    if not xp.isfinite(value.min()) or not xp.isfinite(value.max()):
                        raise ValueError(
                            f"{file}: {stored[where.name]} contains NaN or infinite numbers"
                        )
                    if name == "embedding.weight":
                        self._check_head(value, framework)
                    yield name, xp.asarray(value, copy=True) if copies else value

    def _check_head(self, embedding: Array, framework: str) -> None:
        """Raise ValueError if a second copy of a tied matrix is different."""
        if self.head is None:
            return
        file, name = self.head
        with safe_open(file, framework) as opened:
            head = opened.get_tensor(name)
        if head.shape != embedding.shape or (head != embedding).any():
            raise ValueError(
                f"{file}: {name} is not the embedding, although tie_word_embeddings is true; set "
                "it to false in config.json"
            )


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has no {file.name}; it is not a model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must contain a JSON object (got {type(values).__name__})")
    return values


def _located(
    path: Path, family: Family, config: GPTConfig
) -> tuple[str, dict[Path, dict[str, Location]], tuple[Path, str] | None]:
    """Find every parameter in the files; return the `dtype`, `files` and `head` of a `Folder`.

    Raises ValueError unless each is there exactly once.
    """
    names = family.names
    expected: dict[str, tuple[int, ...]] = {}
    parameters: dict[str, list[tuple[str, Location]]] = {}
    for ours, shape in shapes(config).items():
        where = location(names.table, ours)
        expected[where.name] = where.shape(shape)
        parameters.setdefault(where.name, []).append((ours, where))
    files: dict[Path, dict[str, Location]] = {}
    file_of: dict[str, Path] = {}
    dtype, head = "float32", None
    tied_head = names.table["head.weight"].name if config.tied else ""
    for file in _files(path):
        for theirs, (shape, kind) in _header(file).items():
            name = names.usual(theirs)
            if name not in expected:
                if name == tied_head:
                    head = (file, theirs)
                    continue
                is_head_bias = config.tied and name == tied_head.replace(".weight", ".bias")
                if is_head_bias or any(fnmatchcase(name, pattern) for pattern in names.ignored):
                    continue
                raise ValueError(f"{file}: {theirs} is not a tensor of {family.architecture}")
            if name in file_of:
                both = f"in {file_of[name].name} and in {file.name}"
                raise ValueError(f"{path} has {theirs} twice: {both}")
            if shape != expected[name]:
                raise ValueError(
                    f"{file}: {theirs} has the shape {shape}, but config.json gives "
                    f"{expected[name]}"
                )
            if kind not in _FLOATS:
                raise ValueError(
                    f"{file}: {theirs} has the type {kind}; supported: {', '.join(_FLOATS)}"
                )
            if name == names.table["embedding.weight"].name:
                dtype = _FLOATS[kind]
            file_of[name] = file
            files.setdefault(file, {}).update(parameters[name])
    missing = [name for name in expected if name not in file_of]
    if missing:
        raise ValueError(
            f"{path} has no tensor {missing[0]} ({len(missing)} of {len(expected)} tensors of "
            f"{family.architecture} are missing); download the folder again"
        )
    return dtype, files, head


def _files(path: Path) -> list[Path]:
    """The safetensors of a folder: one file, or the shards of an index."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
        if pickled:
            raise ValueError(
                f"{path} has its weights as {pickled[0]}, a format that can execute code; convert "
                "them with model.save_pretrained(folder) of transformers"
            )
        raise ValueError(f"{path} has no {WEIGHTS} and no {INDEX}; download the folder again")
    index = _json(path / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{path / INDEX} must have a weight_map from tensors to files")
    shards = []
    for name in sorted(set(index.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{path / INDEX} names the file {name!r}; only safetensors in the folder are read"
            )
        if not (path / name).is_file():
            raise ValueError(f"{path} has no {name}, a file that {INDEX} names; download it again")
        shards.append(path / name)
    return shards


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and type of every tensor in a file. Raises ValueError if the file is damaged."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > _HEADER:
        raise ValueError(
            f"{file} is damaged: its header would have {size:,} bytes (the maximum is {_HEADER:,})"
        )
    try:
        with safe_open(file, "numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in [*tensors.keys()]}
            return {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
