"""Tests of the output of a rung in the terminal."""

import numpy as np
import pytest
from rich.console import Console

from headway.ladder.rung import run_example
from headway.ladder.rungs import LADDER
from headway.ladder.show import show


def printed(name, text="Your journey starts with one step"):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(LADDER[name], text, console)
    return console.export_text()


@pytest.mark.parametrize("name", LADDER)
def test_shows_the_real_numbers(name):
    text = printed(name)
    _, steps, context = run_example(LADDER[name])
    for number in np.ravel(context):
        assert f"{number:.4f}" in text
    for step, value in steps.items():
        if step.endswith("weights"):
            allowed = value[value > 0]
            assert all(f"{number:.4f}" in text for number in allowed)


def test_masked_cells_differ_from_zeros():
    text = printed("dropout")
    assert text.count("╱╱╱") == 2 * (15 + 1)  # weights and dropped: upper triangle and legend
    assert "0.0000" in text


def test_a_text_without_words_is_refused():
    with pytest.raises(ValueError, match="at least one word"):
        show(LADDER["fixed"], "  \n")


def test_a_long_text_is_truncated_with_a_note():
    words = " ".join(f"w{i}" for i in range(40))
    text = printed("causal", words)
    assert max(map(len, text.splitlines())) <= 100
    assert "of 40" in text
