"""Parts can be exchanged: a mask of your own, sparsemax, an edit of one head; NumPy will do."""

import numpy as np

import headway
from headway import causal, padding, window
from headway.attention.normalizers import sparsemax

r = np.random.default_rng(0)
queries, keys, values = (r.normal(size=(2, 4, 6, 8)) for _ in range(3))

# A mask is a predicate on positions; masks compose.
strided = headway.Mask(lambda batch, head, query, key: (query - key) % 2 == 0, "strided")
mask = causal & (window(3) | strided) & padding(np.array([6, 4]))
with headway.trace() as steps:
    headway.attend(queries, keys, values, mask=mask, normalizer=sparsemax)
print(f"{mask}: {(steps['weights'] > 0).mean():.0%} of the weights are not zero")


# What if the first head looked everywhere alike?
def first_head_uniform(weights: np.ndarray) -> np.ndarray:
    weights = weights.copy()
    weights[:, 0] = 1 / weights.shape[-1]
    return weights


with headway.edit({"weights": first_head_uniform}):
    context = headway.attend(queries, keys, values)
print("the first head's contexts are now the mean of its values:", end=" ")
print(np.allclose(context[:, 0], values[:, 0].mean(-2, keepdims=True)))
