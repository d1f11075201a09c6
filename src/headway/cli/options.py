"""Make the fields of config dataclasses options of a command.

A field, its type and its description are written once, in the dataclass. Only options that the user
gave reach the command, so that the recipe decides the others.
"""

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypedDict, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse

ALIASES = {"learning_rate": ["--lr"]}


def options(config: type, without: Collection[str] = ()) -> Any:
    """Return the type of a command's parameter: a dictionary of the fields that the user gave.

    A field of a nested dataclass has a key such as "attention.heads". Its option is --heads or, if
    another field has the same name, --attention.heads.
    """
    types = _options(config, without)
    leaves = [name.rpartition(".")[2] for name in types]
    annotated = {}
    for name, (kind, description) in types.items():
        leaf = name.rpartition(".")[2]
        option = leaf if leaves.count(leaf) == 1 else name
        names = [f"--{option}".replace("_", "-"), *ALIASES.get(name, [])]
        annotated[name] = Annotated[kind, Parameter(name=names, help=description)]
    given: Any = TypedDict("given", annotated, total=False)  # type: ignore[misc]
    return Annotated[given | None, Parameter(name="*")]


def _options(config: type, without: Collection[str], table: str = "") -> dict[str, Any]:
    described = {p.arg_name: p.description for p in parse(config.__doc__ or "").params}
    hints = get_type_hints(config)
    types: dict[str, Any] = {}
    for field in fields(config):
        if field.name in without:
            continue
        if is_dataclass(hints[field.name]):
            types |= _options(hints[field.name], without, f"{table}{field.name}.")
        else:
            types[table + field.name] = (hints[field.name], described[field.name])
    return types
