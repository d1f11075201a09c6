"""Attention by explicit loops, in float64 NumPy: slow on purpose, and written apart.

Nothing here imports the rest of Headway and nothing in the rest was copied here, so that each can
catch the other's mistakes. Read it to learn what the fast code must compute; run it to check that
it does.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Normalizer = Callable[[Array, Mask], Array]
