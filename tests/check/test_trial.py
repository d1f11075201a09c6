"""The trial of the doctor: faults are named, and right but unusual attentions are not accused."""

import pytest
import torch

from headway.check import diagnose
from trial import PAGE, checks, examined, said
from unusual import UNUSUAL, rotary
from variants import VARIANTS, Attention, Steps, build, rotate_pairs


def some(entries):
    """Parameters of a test: all entries, every third one among the fast tests."""
    slow = pytest.mark.slow
    return [
        pytest.param(entry, id=entry.name, marks=[slow] if number % 3 else [])
        for number, entry in enumerate(entries)
    ]


@pytest.mark.parametrize("variant", some(VARIANTS))
def test_the_fault_is_named_first_and_nothing_else_is_said(variant):
    result = said(variant)
    assert result.rank == 1, result.diagnoses
    assert not result.is_false, result.diagnoses


@pytest.mark.parametrize("options", [{"base": 500_000.0}, {"how": rotate_pairs}])
def test_a_fault_is_named_for_every_kind_of_rotary_positions(options):
    turn = rotary(**options)

    def place(self, q, k, past):
        return turn(q, k, None, torch.arange(q.shape[2]))[:2]

    unscaled = Steps(scores=lambda q, k: q @ k.mT)
    attention = build(Attention, steps=unscaled, methods={"place": place})
    failed = diagnose(attention, causal=True, positions=True).failed
    assert failed
    for finding in failed:
        assert "no scale at all" in finding.diagnosis
        assert finding.proven


@pytest.mark.parametrize("unusual", some(UNUSUAL))
def test_right_but_unusual_attentions_pass(unusual):
    assert not examined(unusual).failed


def test_the_set_is_large_and_from_public_reports():
    sources = {variant.source for variant in VARIANTS if "#" in variant.source}
    assert len(VARIANTS) >= 60
    assert len(UNUSUAL) >= 50
    assert len(sources) >= 60


@pytest.mark.parametrize(
    ("name", "without", "suggestion"),
    [
        ("module: sliding window", "window", "window=5 (--window 5)"),
        ("module: window on both sides", "window", "window=3 (--window 3)"),
        ("module: learned sinks", "sinks", "sinks=True (--sinks)"),
        ("scale 1/d", "scale", "scale=0.125 (--scale 0.125)"),
        ("module: scale 1/d", "scale", "scale=0.125 (--scale 0.125)"),
        ("module: prefix language model", "prefix", "prefix=3"),
        ("rotary, half of the dims", "rotary_share", "rotary_share=0.5 (--rotary-share 0.5)"),
    ],
)
def test_without_its_declaration_the_report_suggests_it(name, without, suggestion):
    (unusual,) = (each for each in UNUSUAL if each.name == name)
    declared = {key: value for key, value in unusual.declared.items() if key != without}
    failed = diagnose(unusual.attention, **declared).failed
    assert failed
    assert all(finding.proven for finding in failed)
    assert suggestion in failed[0].declare


def test_the_page_is_up_to_date():
    text = PAGE.read_text()
    assert checks() in text, "run `make docs`"
    for each in (*VARIANTS, *UNUSUAL):
        assert f"| {each.name.replace('|', chr(92) + '|')} |" in text, "run `make docs`"
