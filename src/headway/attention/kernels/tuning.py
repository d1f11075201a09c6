"""Choose the fastest kernel for a call: from times measured on this machine, or by a fixed rule.

`headway bench --tune` times the kernels on a few shapes and saves the table in Headway's cache. For
other shapes the times of the nearest measured shapes are averaged, weighted by their distance.
"""

import hashlib
import json
import math
import platform
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from headway import cache as files
from headway.attention.arrays import Array, compiles_for_torch, engine
from headway.attention.kernels.kernel import records_gradients
from headway.attention.masks import causal
from headway.attention.spec import Spec

# The order of the kernels if there is no table. PyTorch's kernel is the fastest, or nearly the
# fastest, for all calls that it supports. On a CPU `tiled` is faster than `plain` for other calls
# (dropout with a seed, softcap) if there is more than one tile; with NumPy and JAX only for long
# texts, where `plain` needs much memory. JAX's kernel takes two thirds of the time of `plain`, for
# the forward and backward passes together. On a GPU (H200, 1,024 tokens) `triton` takes a 13th to a
# 24th of the time of `tiled`, and JAX's kernel with cuDNN a 20th. In a narrow window and in other
# masks of positions, `triton` and `flex` skip what is masked.
RULES: Mapping[str, tuple[str, ...]] = {
    "short": ("sdpa", "jax", "plain"),
    "long": ("sdpa", "tiled", "plain"),
    "cuda": ("sdpa", "triton", "flex", "tiled", "plain"),
    "cuda, narrow window": ("triton", "sdpa", "flex", "tiled", "plain"),
    "cuda, other mask": ("flex", "sdpa", "tiled", "plain"),
    "gpu": ("jax", "tiled", "plain"),  # with JAX
}
SHORT = {"torch": 128**2, "numpy": 2048**2, "jax": 512**2}  # the largest queries * keys of "short"
SHORT_ON_CUDA = 512**2  # up to here, a matrix of the mask costs less than what `flex` skips
NEAREST = 4  # the number of measured shapes that are averaged


class Kind(NamedTuple):
    """The properties that two calls must share so that their times can be compared."""

    engine: str
    device: str
    threads: int
    dtype: str
    backward: bool
    mask: str  # none, causal, band, other
    dropout: bool
    softcap: bool


class Size(NamedTuple):
    """The sizes of a call: batch rows times heads, queries, keys, features of a head."""

    heads: int
    queries: int
    keys: int
    features: int


Seconds = Mapping[str, float]  # kernel name -> seconds
Table = Mapping[Kind, Mapping[Size, Seconds]]


def ranking(queries: Array, keys: Array, values: Array, spec: Spec) -> tuple[str, ...]:
    """The kernels for a call, the fastest first. Some may refuse it; `plain` is always included."""
    if compiles_for_torch():
        return RULES[_rule(queries, keys, spec)]
    torch, mask = sys.modules.get("torch"), spec.mask
    threads = 0 if torch is None else torch.get_num_threads()
    backward = records_gradients(queries, keys, values, spec.bias)
    masked = mask and (mask.band, mask.is_band, mask.predicate is None)
    options = (masked, spec.bias is None, spec.dropout > 0, spec.softcap is None)
    machine = (queries.dtype, getattr(queries, "device", None), backward, threads)
    key = (queries.shape, keys.shape, options, machine)
    ranked = _rankings.get(key)
    if ranked is None:
        if len(_rankings) > 10_000:  # limits the memory of a server that gets many lengths
            _rankings.clear()
        ranked = measured(table(), *kind_and_size(queries, keys, values, spec))
        ranked = _rankings[key] = ranked or RULES[_rule(queries, keys, spec)]
    return ranked


_rankings: dict[Any, tuple[str, ...]] = {}


def _rule(queries: Array, keys: Array, spec: Spec) -> str:
    """The key of RULES for a call."""
    library, mask = engine(queries), spec.mask
    rows, columns = queries.shape[-2], keys.shape[-2]
    if library == "jax" and sys.modules["jax"].default_backend() == "gpu":
        return "gpu"
    if library == "torch" and queries.is_cuda:
        if mask is None or spec.bias is not None or rows == 1:
            return "cuda"
        if mask.is_band:
            width = mask.band.most - mask.band.least + 1
            return "cuda, narrow window" if 2 * width < columns else "cuda"
        is_long = rows * columns > SHORT_ON_CUDA
        return "cuda, other mask" if mask.predicate is not None and is_long else "cuda"
    is_long = rows * columns > SHORT[library] and not compiles_for_torch()
    return "long" if is_long else "short"


def kind_and_size(queries: Array, keys: Array, values: Array, spec: Spec) -> tuple[Kind, Size]:
    """The kind and size of a call, on which the fastest kernel depends."""
    torch, library = sys.modules.get("torch"), engine(queries)
    device = queries.device.type if library == "torch" else "cpu"
    on_cpu = library == "torch" and device == "cpu"
    kind = Kind(
        engine=library,
        device=device,
        threads=torch.get_num_threads() if torch and on_cpu else 0,
        dtype=str(queries.dtype).removeprefix("torch."),
        backward=records_gradients(queries, keys, values, spec.bias),
        mask=_mask(spec),
        dropout=spec.dropout > 0,
        softcap=spec.softcap is not None,
    )
    *heads, rows, features = queries.shape
    return kind, Size(math.prod(heads), rows, keys.shape[-2], features)


def measured(table: Table, kind: Kind, size: Size) -> tuple[str, ...]:
    """The kernels from the fastest to the slowest; empty if the table does not have the kind.

    Averages logarithms of times, so that a large shape does not count more than a small one.
    """
    rows = table.get(kind, {})
    near = sorted(rows, key=lambda other: _distance(size, other))[:NEAREST]
    if not near:
        return ()
    weights = {other: 1 / (0.01 + _distance(size, other) ** 2) for other in near}

    def cost(kernel: str) -> float:
        return sum(weight * math.log(rows[other][kernel]) for other, weight in weights.items())

    everywhere = set.intersection(*(set(rows[other]) for other in near))
    return (*sorted(everywhere, key=cost), "plain")


def is_measured(kernel: str, queries: Array, keys: Array, values: Array, spec: Spec) -> bool:
    """Whether the table has times of this kernel for calls of the same kind."""
    kind, _ = kind_and_size(queries, keys, values, spec)
    return any(kernel in seconds for seconds in table().get(kind, {}).values())


def _distance(one: Size, other: Size) -> float:
    return math.dist([math.log2(max(n, 1)) for n in one], [math.log2(max(n, 1)) for n in other])


def _mask(spec: Spec) -> str:
    if spec.bias is not None:
        return "other"
    if spec.mask is None:
        return "none"
    if not spec.mask.is_band:
        return "other"
    return "causal" if spec.mask.band == causal.band else "band"


def path() -> Path:
    """The file of this machine's table. Raises OSError if its folder cannot be created."""
    versions = [f"{name}-{version(name)}" for name in ("torch", "jax")]
    return files.folder("kernels") / f"{'-'.join([platform.node(), *versions])}.json"


def save(table: Table, file: Path) -> None:
    """Write a table to a file; an error never leaves an incomplete file."""
    rows = [
        {**kind._asdict(), **size._asdict(), "seconds": seconds}
        for kind, sizes in table.items()
        for size, seconds in sizes.items()
    ]
    with files.atomic(file) as temporary:
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def load(file: Path) -> Table:
    """Read a table that `save` wrote. Raises ValueError if the file is not valid."""
    table: dict[Kind, dict[Size, Seconds]] = {}
    try:
        for row in json.loads(file.read_text(encoding="utf-8")):
            kind = Kind(*(row[name] for name in Kind._fields))
            size = Size(*(row[name] for name in Size._fields))
            seconds = {name: float(spent) for name, spent in row["seconds"].items()}
            if not all(spent > 0 for spent in seconds.values()):
                raise ValueError("times must be > 0")
            table.setdefault(kind, {})[size] = seconds
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not a valid table; run: headway bench --tune") from error
    return table


@cache
def table() -> Table:
    """This machine's table, read once; empty if there is none."""
    try:
        return load(path())
    except (OSError, RuntimeError):  # no table, or no home directory
        return {}
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return {}


def forget() -> None:
    """Clear the cached table and rankings; call this after a new table is written."""
    table.cache_clear()
    _rankings.clear()


def digest() -> str:
    """A hash of the table: runs with the same digest choose the same kernels."""
    rows = sorted(
        (kind, size, sorted(seconds.items()))
        for kind, sizes in table().items()
        for size, seconds in sizes.items()
    )
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:12] if rows else "by rule"


def version(library: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
