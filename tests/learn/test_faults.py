"""The faults of the graders are none of a right answer, and can be told apart."""

from dataclasses import replace

import pytest

from headway.learn.graders import (
    attention,
    batches,
    bottleneck,
    cache,
    fused,
    heads,
    mask,
    online,
    positions,
    projections,
    scale,
    similarity,
    softmax,
)
from headway.learn.graders.compare import agree, outcome_of

SQUARE = attention.cases((5, 5, 5))
FORMULAS = {
    "bottleneck": (
        bottleneck.Context(),
        [*bottleneck.cases(), *bottleneck.cases(square=True)],
        bottleneck.faults(),
    ),
    "similarity": (similarity.Scores(), similarity.cases(), similarity.faults()),
    "softmax": (softmax.Softmax(), softmax.cases(), softmax.faults()),
    "extreme scores": (softmax.Softmax(), softmax.extremes(), softmax.extreme_faults()),
    "projections": (
        projections.Projections(),
        [*projections.cases(), *projections.cases(square=True)],
        projections.faults(),
    ),
    "scale": (attention.Attention(), [*scale.cases(), *SQUARE], scale.faults()),
    "mask": (attention.Attention(causal=True), [*mask.cases(), *SQUARE], mask.faults()),
    "heads": (heads.SeveralHeads(), heads.cases(), heads.faults()),
    "fused": (fused.Multihead(), fused.cases(), fused.faults()),
    "batches": (batches.RIGHT, batches.cases(), batches.faults()),
    "half": (positions.FORMULAS[0], positions.cases(), positions.faults()),
    "interleaved": (positions.FORMULAS[1], positions.cases(), positions.faults()),
    "cache": (cache.Cached(), cache.cases(), cache.faults()),
    "online": (online.Online(), online.cases(), online.faults()),
}
# Both names are right: a token that attends to itself only gets its own value.
SAME = {("only-itself", "inputs-returned")}
# A padding mask with the wrong sign gives NaN in the same rows as one that hides queries.
SAME.add(("padding-of-queries", "padding-sign"))
# These names have faults that are right for the other convention of rotary positions.
CONVENTIONS = ("pairs-mixed", "pairs-order")


@pytest.mark.parametrize("exercise", FORMULAS)
def test_faults_of_different_names_give_different_results(exercise):
    formula, cases, faults = FORMULAS[exercise]
    right = [outcome_of(formula, case) for case in cases]
    known = []
    for fault in faults:
        results = [outcome_of(replace(formula, **fault.steps), case) for case in cases]
        if all(map(agree, results, right)):
            assert fault.name in ("rounded", *CONVENTIONS), fault
            continue
        for name, others in known:
            if name != fault.name and (name, fault.name) not in SAME:
                assert not all(map(agree, results, others)), (name, fault.name)
        known.append((fault.name, results))
