"""Tests of the output of a rung in the terminal."""

import re

import numpy as np
import pytest
import rich.color
from rich.console import Console

from headway.ladder.rung import SENTENCE, run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.ladder.show import is_dark, picture, show
from headway.ladder.why import WHY


def printed(name, text=SENTENCE, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(LADDER[name], text, console)
    return console.export_text()


def colors(name):
    """The brightness of the background behind each number, by the number."""
    console = Console(width=100, color_system="truecolor", force_terminal=True)
    picture_ = picture(LADDER[name], SENTENCE, 100, is_dark())
    shades = {}
    for segment in console.render(picture_):
        background = segment.style and segment.style.bgcolor
        if background and background.type == rich.color.ColorType.TRUECOLOR:
            red, green, blue = background.triplet
            shades[float(segment.text)] = 0.3 * red + 0.6 * green + 0.1 * blue
    return shades


@pytest.mark.parametrize("name", LADDER)
def test_shows_the_real_numbers(name):
    text = printed(name)
    _, steps, context = run_example(LADDER[name])
    for number in np.ravel(context):
        assert f"{number:.4f}" in text
    if LADDER[name].equals is None:
        for value in (words_and_inputs()[1], *steps.values()):
            allowed = value[np.isfinite(value) & (value != 0)]
            assert all(f"{number:.4f}" in text for number in allowed)


def test_masked_cells_differ_from_zeros():
    text = printed("dropout")
    assert text.count("╱╱╱") == 3 * 15 + 1  # masked, weights, dropped: upper triangle; legend
    assert "0.0000" in text


def test_a_text_without_words_is_refused():
    with pytest.raises(ValueError, match="at least one word"):
        show(LADDER["fixed"], "  \n")


def test_a_long_text_is_truncated_with_a_note():
    words = " ".join(f"w{i}" for i in range(40))
    text = printed("causal", words)
    assert max(map(len, text.splitlines())) <= 100
    assert "of 40" in text


@pytest.mark.parametrize("name", LADDER)
def test_the_explanation_is_above_the_numbers(name):
    text = printed(name, width=1000)
    why = WHY[name]
    places = [text.find(part) for part in (why.problem, why.without, why.measured, "Your  ")]
    assert places == sorted(places)
    assert min(places) > 0
    top = printed(name, width=80).splitlines()[:14]
    assert any("Measured: " in line for line in top)


NEWS = {
    "fixed": ([], []),
    "simplified": ([], ["scores", "weights", "context"]),
    "trainable": (["queries", "keys", "values", "scaled"], ["scores", "weights", "context"]),
    "causal": (["masked"], ["weights", "context"]),
    "dropout": (["dropped"], ["context"]),
    "multihead": (["output"], []),
}


@pytest.mark.parametrize("name", NEWS)
def test_marks_what_is_new_and_what_changed(name):
    text = printed(name)
    for mark, expected in zip(("new", "changed"), NEWS[name], strict=True):
        assert re.findall(rf"(\w+) \({mark}\)", text) == expected


def test_the_second_head_is_new():
    *first, last = printed("stacked").split("head 1: one row per token")
    assert "(new)" not in "".join(first)
    assert last.count("(new)") == 8


@pytest.mark.parametrize(("variable", "dark"), [(None, True), ("15;0", True), ("0;15", False)])
def test_large_values_differ_most_from_the_background(variable, dark, monkeypatch):
    monkeypatch.delenv("COLORFGBG", raising=False)
    if variable:
        monkeypatch.setenv("COLORFGBG", variable)
    shades = colors("dropout")
    assert (shades[2.0] > shades[0.4529] > shades[0.0]) == dark  # dropped
    assert (shades[2.0] < shades[0.4529] < shades[0.0]) != dark
    output = colors("multihead")  # the smallest of its matrix is -1.7499, the next -1.6760
    assert (output[-1.7499] > output[-0.5099] > 50) == dark


def test_equal_rungs_show_what_differs():
    fused, tiled = printed("fused"), printed("tiled")
    assert "same result as multihead by design" in fused
    assert re.search(r"matrix products +6 +4\n?", fused)
    assert re.search(r"numbers stored for scores +72 +24", tiled)
    _, steps, _ = run_example(LADDER["tiled"])
    last = tiled.partition("6 keys")[2].splitlines()[0]
    assert all(f"{number:.4f}" in last for number in steps["context"][0, -1])


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_fits_the_terminal(width):
    for name in LADDER:
        assert max(map(len, printed(name, width=width).splitlines())) <= width


@pytest.mark.parametrize("name", LADDER)
def test_a_single_word(name):
    assert "1.0000" in printed(name, "word") or LADDER[name].equals
