"""Check the names in the user's input and suggest the nearest known one."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

_Value = TypeVar("_Value")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known name."""
    return f"did you mean {get_close_matches(name, list(known), n=1, cutoff=0.0)[0]!r}?"


def named(table: Mapping[str, _Value], name: str, what: str) -> _Value:
    """Return an entry of a table. Raises ValueError with a similar name, if any, and all names."""
    if name not in table:
        is_similar = get_close_matches(name, table, cutoff=0.5)
        near = f"; {suggestion(name, table)}" if is_similar else "."
        raise ValueError(f"unknown {what} {name!r}{near} Available: {', '.join(table)}")
    return table[name]


def check_keys(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for an unknown key, with the nearest known key as a suggestion.

    what: the name of the table that has the keys, for the error message.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has no {name!r}; {suggestion(name, known)}")
