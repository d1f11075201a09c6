"""Every planted bug is found, and correct attentions pass all checks."""

import pytest

from headway.check import CHECKS, diagnose
from mutants import MUTANTS
from right import RIGHT_ONES
from trial import alone, catchers, diagnosed

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("mutants")


@pytest.mark.parametrize("name", RIGHT_ONES)
def test_correct_attentions_pass(name):
    right = RIGHT_ONES[name]
    diagnosis = diagnose(right.attention, name=name, **right.declared)
    assert not diagnosis.failed
    assert diagnosis.count("pass") >= 11
    for finding in diagnosis.findings:
        assert finding.measured if finding.verdict == "pass" else finding.diagnosis
        assert finding.verdict != "not tested" or "NumPy has no gradients" in finding.diagnosis


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught_by_its_check(name):
    assert MUTANTS[name].caught_by in catchers(name)
    for finding in diagnosed(name).failed:
        assert all((finding.measured, finding.expected, finding.diagnosis, finding.fix))


def test_every_check_is_needed():
    """Each check is the only one to find some mutant, and has mutants for each kind."""
    assert set(alone()) == set(CHECKS)
    made_for = {(mutant.caught_by, mutant.declared["kind"]) for mutant in MUTANTS.values()}
    assert made_for == {(name, kind) for name, check in CHECKS.items() for kind in check.kinds}
    assert len(MUTANTS) >= 40


DIAGNOSES = {
    "softmax over queries": "softmax runs over the query axis",
    "softmax over heads": "softmax runs over the heads",
    "published exercise": "softmax runs over the query axis",
    "module over queries": "softmax runs over the query axis",
    "mask after the softmax": "mask comes after the softmax",
    "mask reversed": "meaning is reversed",
    "causal reversed": "meaning of the causal mask is reversed",
    "causal shifted by one": "shifted by one",
    "finite mask": "not low enough",
    "not scaled": "no scale at all",
    "scaled twice": "scale is applied twice",
    "scaled by all heads": "width of all heads, not of one head",
    "exp overflows": "exp overflows",
    "rescaled at evaluation": "multiplied by 1.111",
    "dropout in evaluation": "dropout is active",
    "module split by a view": "view or reshape without a transpose",
    "kv heads tiled": "h % kv_heads",
    "causal from the top left": "counts from the top left",
    "window too wide": "one key too wide",
    "window on both sides": "includes later keys",
    "mask without causal": "the mask replaces the causal one",
    "causal without mask": "causal=True replaces the mask",
    "dead rows NaN": "becomes NaN",
    "-1e9 for -inf": "attends to all keys equally",
    "NaN replaced": "its gradient is NaN",
    "cap after the mask": "the cap comes after the mask",
    "other pairs": "the other convention",
    "sine reversed": "direction of the rotation is reversed",
    "not rescaled": "not rescaled by 1/(1-p)",
    "rate as the share to keep": "the rate is used as the share to keep",
    "one draw for all heads": "one draw is shared by all heads",
    "undeclared window": "sliding window of 3 that was not declared",
    "inputs shifted": "logits[t] does not depend on token t",
    "labels not shifted": "learns to copy",
    "labels shifted twice": "predict token t + 2",
    "tied by a copy": "they are not tied",
    "untied by loading": "loading unties them",
}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_the_diagnosis_names_the_bug(name):
    (finding,) = (f for f in diagnosed(name).failed if f.check == MUTANTS[name].caught_by)
    assert DIAGNOSES[name] in finding.diagnosis


def test_the_source_line_is_shown():
    (finding,) = (f for f in diagnosed("published exercise").failed if f.check == "constant")
    assert any("torch.softmax(scores" in line for line in finding.look)
