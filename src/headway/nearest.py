"""Unknown names in the user's input, answered with the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def check_keys(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a key that is not known, with the nearest that is."""
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{what} has no {name!r}; did you mean {near!r}?")
