"""The learner's file, imported, and how graders call what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.check.libraries import LIBRARIES, Library
from headway.learn.grades import Wrong


@dataclass(frozen=True)
class Answer:
    """The function or class that an exercise asks for.

    entry: the function, or the class of a module. library: of the arrays that it takes.
    """

    entry: Any
    library: Library
    source: str

    def call(self, *inputs: np.ndarray, of: Any = None, **options: Any) -> np.ndarray:
        """Call the answer with arrays of its library and return its result as a NumPy array.

        of: what to call instead of `entry`, such as an instance of it. Raises `Wrong` if it raises
        an error or returns no array.
        """
        arrays = [self.library.array(array, "float32") for array in inputs]
        try:
            result = (of or self.entry)(*arrays, **options)
        except Exception as error:
            raise Wrong("error", f"it raised {type(error).__name__}: {error}") from error
        return self.array(result)

    def array(self, result: Any) -> np.ndarray:
        """Convert a result to NumPy. Raises `Wrong` if it is no array."""
        if result is None:
            raise Wrong("none", "it returned None; is the return statement missing?")
        if not any(library().is_array(result) for library in LIBRARIES.values()):
            kind = type(result).__name__
            raise Wrong("not-an-array", f"it returned a {kind}; return an array")
        return self.library.numpy(result)
