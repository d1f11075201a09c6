"""The figure `gpt`: its shapes and parameters are those of a model."""

import math
import re
import tomllib

import pytest
import torch

import headway
from figures import called, drawn, said
from headway.learn.guide import CHAPTERS, chapters
from headway.models.gpt import shapes
from headway.torch.gpt import GPT
from headway.training.recipes import read

pytestmark = pytest.mark.xdist_group("browser")
SIZES = {"vocabulary": 65, "context": 64, "width": 128, "layers": 4, "heads": 4}


def config(vocabulary, context, width, layers, heads):
    sizes = {"vocabulary": vocabulary, "context": context, "width": width, "layers": layers}
    return headway.preset("modern", **sizes, attention={"heads": heads})


def test_the_sizes_are_those_of_the_recipe():
    model = read("char-cpu")["model"]
    assert {**SIZES, **{k: model[k] for k in ("context", "width", "layers")}} == SIZES
    assert model["attention"]["heads"] == SIZES["heads"]


@pytest.mark.parametrize(
    "sizes", [SIZES, {"vocabulary": 1024, "context": 256, "width": 768, "layers": 12, "heads": 2}]
)
def test_parameters(page, sizes):
    stages = called(page, "gpt", "stages", sizes)
    expected = sum(math.prod(shape) for shape in shapes(config(**sizes)).values())
    assert called(page, "gpt", "total", stages) == expected


def test_shapes(page):
    stages = {one["name"]: one["shape"] for one in called(page, "gpt", "stages", SIZES)}
    block = next(one for one in called(page, "gpt", "stages", SIZES) if "inside" in one)
    inside = {one["name"]: one["shape"] for one in block["inside"]}
    model = GPT(config(**SIZES))
    with headway.trace() as steps:
        model(torch.zeros((1, SIZES["context"]), dtype=torch.int64))
    names = {"scores": "scores", "weights": "weights", "context": "context", "rotation": "queries"}
    for shown, name in names.items():
        shape = steps[f"blocks.0.attention.{name}"].shape
        assert inside[shown] == f"(batch, {', '.join(map(str, shape[1:]))})"
    assert inside["queries, keys, values"] == f"3 × {inside['rotation']}"
    for shown, name in {"embedding": "embedded", "logits": "logits"}.items():
        assert stages[shown] == f"(batch, {', '.join(map(str, steps[name].shape[1:]))})"


def test_the_links_lead_to_chapters(page):
    numbers = {chapter.number: chapter.name for chapter in chapters()}
    drawn(page, "gpt")
    links = page.locator(".from a").evaluate_all(
        "all => all.map(one => [Number(one.innerText), one.getAttribute('href').slice(1)])"
    )
    assert {number for number, _ in links} == set(range(1, 14))
    assert all(numbers.get(number, name) == name for number, name in links)


def test_a_slider_changes_the_model(page):
    drawn(page, "gpt")
    assert said(page)["parameters"] == "795,648"
    page.get_by_label("layers").focus()
    page.keyboard.press("ArrowRight")
    expected = sum(math.prod(shape) for shape in shapes(config(**{**SIZES, "layers": 8})).values())
    assert said(page)["parameters"] == f"{expected:,}"
    assert "8 blocks" in page.locator("main").inner_text()


def test_samples(page):
    text = (CHAPTERS / "14_gpt.md").read_text(encoding="utf-8")
    options = next(
        tomllib.loads(body)
        for body in re.findall(r"^```figure\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if "samples" in body
    )
    stages = options["stages"]
    losses = [one["loss"] for one in stages]
    assert losses == sorted(losses, reverse=True)
    assert all(one["text"].startswith("First Citizen:") for one in stages)
    drawn(page, "gpt", options)
    assert page.inner_text("pre") == stages[-1]["text"]
    page.get_by_label("Training steps").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("pre") == stages[-2]["text"]
    assert said(page)["validation loss"] == f"{stages[-2]['loss']} nats per token"
    assert said(page)["as if it chose among"] == f"{math.exp(stages[-2]['loss']):.1f} characters"
    drawn(page, "gpt", options, broken=True)
    assert page.inner_text("pre") == stages[0]["text"]
    assert page.locator("input").count() == 0
