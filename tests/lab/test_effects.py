"""What may be claimed from losses: with few seeds only a tendency, else an interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.lab.effects import CLAIMS, ENOUGH, SMALL, effect_of, interval


def effect(*differences):
    own = dict(enumerate(2.0 + item for item in differences))
    return effect_of("a", "b", {"a": own, "b": dict.fromkeys(own, 2.0)}, len(own))


def claim(*differences):
    return effect(*differences).claim


@pytest.mark.parametrize(
    ("differences", "wanted"),
    [
        ((-0.10, -0.11, -0.12), "tendency"),
        ((0.10, 0.11, 0.12, 0.11), "tendency"),
        ((-0.10, -0.11, 0.12), "undecided"),  # not unanimous
        ((0.0, 0.0, 0.0), "undecided"),
        ((-0.3,), "undecided"),  # one seed says nothing, nor do two
        ((-0.3, -0.3), "undecided"),
        ((0.001, 0.001), "undecided"),
        ((-0.10, -0.11, -0.12, -0.10, -0.13), "better"),
        ((0.2, 0.1, 0.3, 0.4, 0.2), "worse"),
        ((-0.1, 0.1, -0.2, 0.2, 0.05), "undecided"),
        ((0.001, -0.001, 0.002, -0.002, 0.0), "no difference"),
        ((-0.001, -0.0011, -0.0012, -0.001, -0.0013), "no difference"),  # sure, and nothing
    ],
)
def test_claims(differences, wanted):
    assert claim(*differences) == wanted


def test_only_seeds_that_both_have_are_paired():
    losses = {"a": {0: 2.0, 2: 2.5}, "b": {0: 1.5, 1: 9.0, 2: 2.75}}
    result = effect_of("a", "b", losses, 2)
    assert result.differences == {0: 0.5, 2: -0.25}
    assert result.mean == 0.125


def test_survivors_do_not_speak_for_those_that_failed():
    losses = {"a": dict.fromkeys(range(4), 1.0), "b": dict.fromkeys(range(5), 2.0)}
    result = effect_of("a", "b", losses, 5)
    assert result.claim == "nothing"
    assert (
        str(result)
        == "a compared with b: no conclusion, because only 4 of 5 seeds have ended in both"
    )
    assert effect_of("a", "c", losses, 5).claim == "nothing"
    assert effect_of("a", "b", {**losses, "a": losses["b"]}, 5).claim == "no difference"


def test_the_interval_is_students():
    """By hand: mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445."""
    low, high = interval([1, 2, 3, 4, 5])
    assert (low + high) / 2 == pytest.approx(3)
    assert (high - low) / 2 == pytest.approx(2.776445 * 2.5**0.5 / 5**0.5, rel=1e-6)
    assert interval([1, 2, 3, 4]) is None


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    result = [interval(random.normal(0.3, 1, 5).tolist()) for _ in range(2000)]
    share = np.mean([low < 0.3 < high for low, high in result])
    assert share == pytest.approx(0.95, abs=0.015)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_the_other_way_round_is_the_opposite(differences):
    opposite = {"better": "worse", "worse": "better"}
    result = claim(*differences)
    assert claim(*(-item for item in differences)) == opposite.get(result, result)
    if result in opposite:
        assert max(abs(item) for item in differences) > SMALL
    if result in CLAIMS:
        assert len(differences) >= ENOUGH


@pytest.mark.parametrize(
    ("differences", "sentence"),
    [
        (
            (-0.160, -0.123, -0.071),
            "tendency: lower by 0.118 nats per token in all 3 seeds (-0.160, -0.123, -0.071); "
            "a claim needs 5 seeds",
        ),
        (
            (0.2, 0.1, 0.3, 0.2),
            "tendency: higher by 0.200 nats per token in all 4 seeds (+0.200, +0.100, +0.300, "
            "+0.200); a claim needs 5 seeds",
        ),
        ((-0.2, 0.1), "undecided (-0.200, +0.100); a claim needs 5 seeds"),
        (
            (-0.1, -0.2, -0.3, -0.4, -0.5),
            "better by 0.300 nats per token (95% interval -0.496 to -0.104, 5 seeds)",
        ),
        ((0.0,) * 5, "no difference (95% interval +0.000 to +0.000, 5 seeds)"),
    ],
)
def test_the_sentence_says_how_sure_it_is(differences, sentence):
    assert str(effect(*differences)) == f"a compared with b: {sentence}"


def test_only_the_same_claim_confirms_a_claim():
    better, worse, nothing = effect(*[-0.5] * 5), effect(*[0.5] * 5), effect(*[0.0] * 5)
    undecided, tendency = effect(-1, 1, -1, 1, 1), effect(-0.5, -0.5, -0.5)
    assert better.confirmed_by(better)
    assert nothing.confirmed_by(nothing)
    for other in (worse, nothing, undecided, tendency):
        assert better.confirmed_by(other) is False
    for first in (undecided, tendency):  # no claim, so nothing to confirm
        assert first.confirmed_by(first) is None
