"""How a side of a comparison is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from headway.models.parameters import one_of


@dataclass(frozen=True)
class Settings:
    """How a side is run.

    attention: the kernel; for a model of transformers the name of its attention function. dtype: of
    the parameters. device: such as cuda. engine: torch or jax. cache: the number of tokens per call
    with a cache. pad_left, pad_right: tokens of padding. checkpoint: the step of a run.
    """

    attention: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    engine: str = "torch"
    cache: int = 0
    pad_left: int = 0
    pad_right: int = 0
    checkpoint: int | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Settings:
        """Check names and values, which may be strings. Raises ValueError for unknown ones."""
        least = {"cache": 1, "pad_left": 0, "pad_right": 0, "checkpoint": 0}
        values = dict(given)
        for name, value in given.items():
            one_of("setting", name, [field.name for field in fields(cls)])
            if name in least:
                values[name] = _integer(name, value, least[name])
        settings = cls(**values)
        if settings.dtype is not None:
            one_of("dtype", settings.dtype, ("float32", "float64", "bfloat16", "float16"))
        one_of("engine", settings.engine, ("torch", "jax"))
        if settings.cache and settings.pad_right:
            raise ValueError("cache and pad_right cannot be combined; use pad_left")
        return settings

    def __str__(self) -> str:
        """The settings that are not the default ones."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: value for name, value in values.items() if value != _default(name)}
        return ", ".join(f"{name}={value}" for name, value in changed.items())

    @property
    def is_whole(self) -> bool:
        """Whether one call gets the whole text, without padding."""
        return not (self.cache or self.pad_left or self.pad_right)


def _default(name: str) -> Any:
    return Settings.__dataclass_fields__[name].default


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer of at least {least} (got {value!r})")
    return number
