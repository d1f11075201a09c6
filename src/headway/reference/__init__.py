"""A reference implementation of attention in float64 NumPy with explicit loops, slow on purpose.

It was written separately and imports nothing else of Headway, so that a comparison of the two
reveals a mistake in either. Read it to learn what the fast code must compute.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Normalizer = Callable[[Array, Mask], Array]
