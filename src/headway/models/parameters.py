"""Entries of the tables of parameters, their random numbers, and checks of config fields."""

from collections.abc import Iterable
from zlib import crc32

import numpy as np

Shape = tuple[int, ...]


def at_least_one(config: object, *names: str) -> None:
    """Raise ValueError if one of these attributes is below 1; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1 (got {value})")


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError if a value is not one of the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)} (got {value!r})")


def norm(name: str, width: int, has_bias: bool = True) -> dict[str, Shape]:
    """The parameters of a norm of vectors of this width."""
    biases: dict[str, Shape] = {f"{name}.bias": (width,)} if has_bias else {}
    return {f"{name}.weight": (width,)} | biases


def linear(name: str, d_in: int, d_out: int, has_bias: bool = True) -> dict[str, Shape]:
    """The parameters of a linear layer; the weight is (d_out, d_in)."""
    biases: dict[str, Shape] = {f"{name}.bias": (d_out,)} if has_bias else {}
    return {f"{name}.weight": (d_out, d_in)} | biases


def generator(name: str, seed: int) -> np.random.Generator:
    """The random generator of a parameter, which depends only on its name and the seed."""
    return np.random.Generator(np.random.Philox(key=[seed, crc32(name.encode())]))
