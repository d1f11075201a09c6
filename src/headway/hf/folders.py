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
_HEADER = 2**24  # maximum bytes of the header of a file; a model of 1,000 layers has about 2 MB
_FLOATS = ("F64", "F32", "F16", "BF16")


@final
@dataclass(frozen=True)
class Folder:
    """A checked folder. files: for each file, the parameters in it: our name and its location."""

    path: Path
    family: Family
    config: GPTConfig
    files: Mapping[Path, Mapping[str, Location]]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check a folder. Raises ValueError if it is damaged, incomplete or not supported."""
        family, config = configs.read(_json(path / "config.json"))
        return cls(path, family, config, _located(path, family, config))

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
        return tokenizer

    def parameters(self, framework: str) -> Iterator[tuple[str, Array]]:
        """Yield the name and the value of each parameter, read file by file.

        framework: "pt" for PyTorch, whose tensors are views of the memory-mapped file, or "flax"
        for JAX. Raises ValueError for a value that is NaN or infinite.
        """
        copies = any(place.is_transposed for place in self.family.table.values())
        for file, places in self.files.items():
            with safe_open(file, framework) as opened:
                names = {_name(name, self.family.prefix): name for name in [*opened.keys()]}
                for name, place in places.items():
                    theirs = names[place.name]
                    value = place.read(opened.get_tensor(theirs))
                    xp = namespace(value)
                    # Two numbers, because an array of booleans would take more memory.
                    if not xp.isfinite(value.min()) or not xp.isfinite(value.max()):
                        raise ValueError(f"{file}: {theirs} contains NaN or infinite numbers")
                    # A view would keep the complete file in memory, next to the other parameters.
                    yield name, xp.asarray(value, copy=True) if copies else value


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError if there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has no {file.name}; it is not a model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must contain a JSON object (got {type(values).__name__})")
    return values


def _located(path: Path, family: Family, config: GPTConfig) -> dict[Path, dict[str, Location]]:
    """Find every parameter in the files. Raises ValueError unless each is there exactly once."""
    expected: dict[str, tuple[int, ...]] = {}
    parameters: dict[str, list[tuple[str, Location]]] = {}
    for ours, shape in shapes(config).items():
        place = location(family.table, ours)
        expected[place.name] = place.shape(shape)
        parameters.setdefault(place.name, []).append((ours, place))
    ignored = [*family.ignored]
    if config.tied:  # files may have the same matrix, and BERT's bias, a second time
        ignored.append(family.table["head.weight"].name.replace(".weight", ".*"))
    located: dict[Path, dict[str, Location]] = {}
    found: dict[str, Path] = {}
    for file in _files(path):
        for theirs, (shape, kind) in _header(file).items():
            name = _name(theirs, family.prefix)
            if name not in expected:
                if any(fnmatchcase(name, pattern) for pattern in ignored):
                    continue
                raise ValueError(f"{file}: {theirs} is not a tensor of {family.architecture}")
            if name in found:
                raise ValueError(
                    f"{path} has {theirs} twice: in {found[name].name} and in {file.name}"
                )
            if shape != expected[name]:
                raise ValueError(
                    f"{file}: {theirs} has the shape {shape}, but config.json gives "
                    f"{expected[name]}"
                )
            if kind not in _FLOATS:
                raise ValueError(
                    f"{file}: {theirs} has the type {kind}; supported: {', '.join(_FLOATS)}"
                )
            found[name] = file
            located.setdefault(file, {}).update(parameters[name])
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no tensor {missing[0]} ({len(missing)} of {len(expected)} tensors of "
            f"{family.architecture} are missing); download the folder again"
        )
    return located


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


def _name(theirs: str, prefix: str) -> str:
    """The usual name of a tensor: some files leave out the prefix, and BERT's first ones say gamma
    and beta."""
    if not theirs.startswith((prefix, "lm_head.", "cls.")):
        theirs = prefix + theirs
    return theirs.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
