"""Check the names in the user's input and suggest the nearest known one."""

from collections.abc import Iterable
from difflib import get_close_matches


def check_keys(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for an unknown key, with the nearest known key as a suggestion.

    what: the name of the table that has the keys, for the error message.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{what} has no {name!r}; did you mean {near!r}?")
