"""The graders by the name of their exercise.

A grader raises `Wrong` for a wrong answer. It may return a remark for the learner who passed.
"""

from collections.abc import Callable
from functools import partial

from headway.learn.answer import Answer
from headway.learn.graders import (
    batches,
    bottleneck,
    bugs,
    cache,
    dropout,
    fused,
    gpt,
    heads,
    mask,
    online,
    positions,
    projections,
    scale,
    similarity,
    softmax,
)

GRADERS: dict[str, Callable[[Answer], str | None]] = {
    "bottleneck": bottleneck.grade,
    "similarity": similarity.grade,
    "softmax": softmax.grade,
    "projections": projections.grade,
    "scale": scale.grade,
    "mask": mask.grade,
    "dropout": dropout.grade,
    "heads": heads.grade,
    "fused": fused.grade,
    "batches": batches.grade,
    "positions": positions.grade,
    "cache": cache.grade,
    "online": online.grade,
    "gpt": gpt.grade,
    **{name: partial(bugs.grade, name) for name in bugs.BUGS},
}
