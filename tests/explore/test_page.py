"""The page in a real browser: its numbers are the engine's, and it needs nothing but its file."""

import json
import re
from base64 import b64decode
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import safetensors.numpy
import torch
from playwright.sync_api import expect

import headway
from gpts import MODERN, attending, gpt_config
from headway.attention.dropout import keep
from headway.attention.masks import Mask
from headway.attention.spec import Spec
from headway.explore import export, trace_file
from headway.explore.notebook import show
from headway.explore.tracers import LadderTracer, ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel, find
from headway.torch import GPT
from headway.torch.gpt import multi_head
from headway.tracing import INSIDE
from pages import opened, settled, table, written

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "it was the age"


@pytest.fixture(scope="module")
def traced(run):
    return WithLadder(ModelTracer(StoredModel.open(run.path))).trace(TraceRequest(TEXT, write=8))


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), *traced)


def test_the_numbers_of_a_head_are_the_engines(page, exported, traced):
    for step in ("scores", "scaled", "masked", "weights", "context"):
        opened(page, f"{exported}#layer=1&head=2&step={step}&table=1")
        expected = traced[0][f"blocks.1.attention.{step}"][0, 2]
        assert np.array_equal(table(page), expected), step


def lean(tensors, manifest):
    """Without all that can be recomputed from queries, keys and values."""
    inside = ("scores", "scaled", "capped", "masked", "weights", "context")
    return {n: t for n, t in tensors.items() if not n.endswith(inside)}, manifest


def of_model(**choices):
    options = choices.pop("options", {})
    torch.manual_seed(0)
    attention = partial(multi_head, attend=attending(kernel="plain", **options))
    made = GPT(gpt_config(11, 64, 24, 2, 4, **choices), attention).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return partial(made, torch.arange(60)[None] % 11)


def of_attend(queries, keys, batch=1, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 4, queries, 6), (batch, 2, keys, 6), (batch, 2, keys, 5))
    parts = [2 * torch.randn(shape, generator=generator) for shape in shapes]
    return lambda: headway.attend(*parts, kernel="plain", **options)


ODD = Mask(lambda batch, head, query, key: (key % 3 != 1) & (key < query + head))
# What ran, the attention, and which of its heads to look at, from which row and column.
RECOMPUTED = {
    "gpt2": (of_model(), "blocks.1.attention", 3, (30, 11)),
    "modern, grouped": (of_model(kv_heads=2, **MODERN), "blocks.0.attention", 1, (36, 2)),
    "window, softcap, scale": (
        of_model(options={"window": 3, "softcap": 4.0, "scale": 0.3}),
        "blocks.1.attention",
        2,
        (8, 0),
    ),
    "own mask, dead rows": (partial(of_model(), spec=Spec(ODD)), "blocks.1.attention", 0, (0, 0)),
    "bias of each head": (
        of_attend(30, 30, bias=torch.linspace(-3, 5, 4 * 900).reshape(4, 30, 30) % 1.7),
        "",
        2,
        (3, 5),
    ),
    "bias of each text": (
        of_attend(9, 9, batch=2, bias=torch.linspace(-3, 5, 162).reshape(2, 1, 9, 9) % 1.7),
        "",
        6,
        (0, 0),
    ),
    "more keys than queries": (of_attend(5, 9, causal=True), "", 1, (0, 0)),
    "an offset": (of_attend(7, 7, causal=True, offset=-2), "", 3, (0, 0)),
    "no mask": (of_attend(6, 6), "", 0, (0, 0)),
}


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_what_is_recomputed_is_what_the_engine_computed(page, kind, tmp_path):
    run, attention, head, (top, left) = RECOMPUTED[kind]
    with torch.no_grad(), headway.trace() as steps:
        run()
    complete, manifest = trace_file.describe(steps)
    prefix = f"{attention}." if attention else ""
    rows, columns = complete[f"{prefix}weights"].shape[-2:]
    sides = {"tokens": rows, "key_tokens": columns}
    manifest |= {name: [{"display": str(i)} for i in range(n)] for name, n in sides.items()}
    manifest |= {"kind": "trace", "title": "", "text": ""}
    (tmp_path / "page.html").write_text(export.page(*lean(complete, manifest)))
    at = (tmp_path / "page.html").as_uri()
    layer = 1 if "blocks.1" in attention else 0
    seen = [step for step in (*INSIDE, "context") if prefix + step in complete]
    assert len(seen) >= 4
    for step in seen:
        opened(page, f"{at}#layer={layer}&head={head}&step={step}&table=1&at={top},{left}")
        assert "recomputed from" in page.inner_text("figcaption")
        engine = complete[prefix + step].reshape(-1, *complete[prefix + step].shape[-2:])[head]
        shown = table(page)
        part = engine[top : top + len(shown)]
        engine = part if step == "context" else part[:, left : left + shown.shape[1]]
        assert engine.any()
        size = max(1, np.abs(engine[np.isfinite(engine)]).max())  # float32 rounds what is large
        np.testing.assert_allclose(shown, engine, rtol=1e-5, atol=1e-6 * size)


def luminance(colour):
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.6 * green + 0.1 * blue


def rects(page, selector):
    """The cells of a picture as they lie on the page: y, x and colour, row by row."""
    output = (
        page.locator(f"{selector} > g")
        .first.locator("rect")
        .evaluate_all(
            "all => all.map(one => ['y', 'x', 'fill'].map(name => one.getAttribute(name)))"
        )
    )
    return sorted((float(y), float(x), fill) for y, x, fill in output)


def test_the_picture_of_weights_lies_right_and_is_darker_where_they_are_larger(
    page, exported, traced
):
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    weights = traced[0]["blocks.1.attention.weights"][0, 2]
    size = len(TEXT)
    cells = rects(page, ".before-after svg[tabindex]")
    assert len(cells) == size**2
    fills = np.array([fill for _, _, fill in cells]).reshape(size, size)
    hatched = np.char.startswith(fills, "url")
    assert np.array_equal(hatched, np.triu(np.ones((size, size), bool), 1))
    seen = sorted((weights[i, j], luminance(fills[i, j])) for i, j in np.argwhere(~hatched))
    assert all(one[1] >= other[1] - 1 for one, other in pairwise(seen))
    assert seen[0][1] - seen[-1][1] > 60
    labels = page.locator(".before-after svg[tabindex] text.label title").all_text_contents()
    drawn = [letter.replace(" ", "·") for letter in TEXT]
    assert labels == drawn + drawn


def test_keys_stand_above_turned(page, exported, traced):
    """Blue is negative, red positive, in every cell: of queries, of keys turned, of scores."""
    opened(page, f"{exported}#layer=0&head=3&step=scores")
    parts = {name: traced[0][f"blocks.0.attention.{name}"][0, 3] for name in ("queries", "scores")}
    parts["above"] = traced[0]["blocks.0.attention.keys"][0, 3].T
    for place, part in zip(
        ("beside", "above", "result"), ("queries", "above", "scores"), strict=True
    ):
        cells = rects(page, f".{place} svg")
        numbers = parts[part].ravel()
        assert len(cells) == numbers.size
        for (_, _, fill), number in zip(cells, numbers, strict=True):
            if abs(number) > 0.05 * np.abs(numbers).max():
                assert (int(fill[1:3], 16) > int(fill[5:7], 16)) == (number > 0)


def pixels(page, selector):
    """Each canvas as luminance and alpha at the middle of its cells."""
    return page.locator(selector).evaluate_all(
        """all => all.map(canvas => {
            const {width, height} = canvas;
            const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
            const light = i => 0.3 * data[i] + 0.6 * data[i + 1] + 0.1 * data[i + 2];
            const at = [...Array(width * height).keys()].map(i => [light(4 * i), data[4 * i + 3]]);
            return {width, height, at};
        })"""
    )


@pytest.mark.parametrize("large", [False, True])
def test_thumbnails_show_their_own_heads(page, run, traced, exported, large, tmp_path):
    tensors, at = traced[0], exported
    if large:
        trace = WithLadder(ModelTracer(StoredModel.open(run.path))).trace(
            TraceRequest("it was the best of times, it was the worst of times, it")
        )
        (tmp_path / "large.html").write_text(export.page(*trace))
        tensors, at = trace[0], (tmp_path / "large.html").as_uri()
    opened(page, at)
    canvases = pixels(page, ".band canvas")
    assert len(canvases) == 8
    name = "overview" if large else "weights"
    for number, canvas in enumerate(canvases):
        weights = tensors[f"blocks.{number // 4}.attention.{name}"][0, number % 4]
        zoom = canvas["width"] // weights.shape[1]
        assert zoom >= 2
        grid = np.array(canvas["at"]).reshape(canvas["height"], canvas["width"], 2)
        light, alpha = grid[1::zoom, 1::zoom].transpose(2, 0, 1)
        may = alpha == 255
        apart = -(-55 // trace_file.OVERVIEW) if large else 1
        rows, columns = np.indices(weights.shape) * apart
        assert np.array_equal(may, columns <= rows)
        seen = sorted(zip(weights[may], light[may], strict=True))
        assert all(one[1] >= other[1] - 1.5 for one, other in pairwise(seen))


def test_rows_of_a_large_file_come_from_their_own_bytes(page, tmp_path, monkeypatch):
    """A tensor that is not fetched whole, in a file of many pieces."""
    monkeypatch.setattr(export, "PIECE", 3 * 7001)
    weights = np.random.default_rng(0).random((2, 300, 300))
    manifest = {"steps": [["weights", [2, 300, 300]]], "attentions": {}, "overview": 48}
    manifest |= {"kind": "trace", "title": "", "text": ""}
    manifest["tokens"] = [{"display": f"t{i}"} for i in range(300)]
    (tmp_path / "page.html").write_text(export.page({"weights": weights}, manifest))
    opened(
        page, f"{(tmp_path / 'page.html').as_uri()}#layer=0&head=1&step=weights&table=1&at=117,41"
    )
    assert np.array_equal(table(page), weights[1, 117:141, 41:65])
    heads = page.locator("table.numbers th").all_inner_texts()
    assert heads[0] == "t41"
    assert heads[-1] == "t140"
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    settled(page)
    assert np.array_equal(table(page), weights[1, 105:129, 53:77])


def test_every_byte_of_a_large_file_is_there(monkeypatch, traced):
    monkeypatch.setattr(export, "PIECE", 3 * 7001)
    page = export.page(*traced)
    pieces = re.findall(r'<script type="application/octet-stream"[^>]*>([^<]*)<', page)
    raw = [b64decode(piece) for piece in pieces]
    assert len(raw) > 5
    assert {len(item) for item in raw[:-1]} == {3 * 7001}
    tensors = safetensors.numpy.load(b"".join(raw))
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in traced[0].items())


def test_a_mouse_finds_the_cell_under_it(page, tmp_path):
    """And both sides have their own words: five queries, nine keys."""
    with headway.trace() as steps:
        of_attend(5, 9, causal=True)()
    words = ("a b c d e", "r s t u v w x y z")
    show(steps, words).save(tmp_path / "page.html")
    at = (tmp_path / "page.html").as_uri()
    opened(page, f"{at}#layer=0&head=1&step=weights")
    weights = steps["weights"][0, 1].numpy()
    picture = ".before-after svg[tabindex]"
    cells = rects(page, picture)
    y, x, _ = cells[3 * 9 + 6]
    box = page.locator(picture).bounding_box()
    page.wait_for_timeout(500)  # while one view turns into the next its picture takes the mouse
    page.mouse.move(box["x"] + x + 5, box["y"] + y + 5)
    expect(page.locator("dl.numbers")).to_contain_text("query")
    message = page.inner_text("dl.numbers").split("\n")
    assert message[:4] == ["query", "d (3)", "key", "x (6)"]
    assert message[-1] == str(weights[3, 6])
    labels = page.locator(f"{picture} text.label title").all_text_contents()
    assert labels == " ".join(words).split()
    page.mouse.click(box["x"] + x + 5, box["y"] + y + 5)
    settled(page)
    assert "cell=3,6" in page.url
    opened(page, f"{at}#layer=0&head=1&step=weights&lines=1")
    sides = page.locator("svg.lines text.label").evaluate_all(
        "all => all.map(one => [Number(one.getAttribute('x')) < 110, one.textContent])"
    )
    assert [text for left, text in sides if left] == words[0].split()
    assert [text for left, text in sides if not left] == words[1].split()


def test_the_last_of_two_quick_moves_is_what_is_shown(page, exported):
    page.emulate_media(reduced_motion="no-preference")
    for pause in (0, 2, 5, 10, 20, 35):
        opened(page, f"{exported}#layer=0")
        page.evaluate(
            """pause => { location.hash = 'layer=0&head=1&step=scores';
                setTimeout(() => { location.hash = 'layer=0&head=2&step=weights'; }, pause); }""",
            pause,
        )
        page.wait_for_timeout(pause + 20)
        settled(page)
        assert "Head 2 › weights" in page.inner_text(".crumbs")


LONG = "it was the best of times, it was the worst of times, it was"


@pytest.fixture(scope="module")
def long(run, tmp_path_factory):
    tensors, manifest = WithLadder(ModelTracer(StoredModel.open(run.path))).trace(
        TraceRequest(LONG)
    )
    file = tmp_path_factory.mktemp("long") / "page.html"
    file.write_text(export.page(tensors, manifest))
    return file.as_uri(), tensors


def test_windows_of_long_texts(page, long):
    at, tensors = long
    hidden = tensors["blocks.1.mlp.hidden"][0]
    opened(page, f"{at}#layer=1&tensor=blocks.1.mlp.hidden&at=7,31&table=1")
    assert np.array_equal(table(page), hidden[7:31, 31:55])
    opened(page, f"{at}#layer=1&tensor=blocks.1.attention.keys&part=2&table=1")
    assert np.array_equal(table(page), tensors["blocks.1.attention.keys"][0, 2, :24])
    opened(page, f"{at}#layer=1&head=2&step=dropped&training=7&at=30,5&table=1")
    weights = tensors["blocks.1.attention.weights"][0, 2].astype(float)
    places = [np.arange(n, dtype=np.int32) for n in (1, 4, len(LONG), len(LONG))]
    batch, heads, rows, columns = np.ix_(*places)
    kept = keep(0.1, 7, batch, heads, rows, columns, like=np.zeros(1))[0, 2]
    dropped = np.where(kept, weights / 0.9, 0)[30:54, 5:29]
    np.testing.assert_allclose(table(page), dropped, rtol=1e-12)
    page.get_by_role("button", name="sample again").click()
    settled(page)
    assert "seed 8" in page.inner_text(".picture")
    assert not np.allclose(table(page), dropped)


def test_a_cell_of_a_long_row(page, long):
    """The strongest keys, each with its own value; the arithmetic as it is written."""
    at, tensors = long
    part = {
        n: tensors[f"blocks.1.attention.{n}"][0, 2].astype(float)
        for n in ("queries", "keys", "values", "scores", "scaled", "weights")
    }
    opened(page, f"{at}#layer=1&head=2&step=weights&cell=50,20&table=1")
    row = part["weights"][50]
    best = sorted({*np.argsort(-row, kind="stable")[:16], 20})
    drawn = [LONG[key].replace(" ", "·") for key in best]
    assert page.locator(".bars .token").all_inner_texts() == drawn
    np.testing.assert_allclose(table(page)[:-1], row[best, None] * part["values"][best], rtol=1e-6)
    text = page.inner_text("main").replace("−", "-")
    number = r"\(?(-?[\d.e-]+)\)?"
    terms = re.findall(f"{number} × {number}", text)[:3]
    for c, (one, other) in enumerate(terms):
        assert float(one) == pytest.approx(part["queries"][50, c], rel=0.006)
        assert float(other) == pytest.approx(part["keys"][20, c], rel=0.006)
    total = float(page.inner_text("strong[data-sum]").replace("−", "-"))
    assert total == pytest.approx(part["scores"][50, 20], rel=0.006)
    score, root, quotient = re.search(rf"{number} / √(\d+) = {number}", text).groups()
    assert float(score) == total
    assert int(root) == 8
    assert float(quotient) == pytest.approx(part["scaled"][50, 20], rel=0.006)


def test_dropout_is_drawn_by_the_engines_hash(page, exported, traced):
    opened(page, f"{exported}#layer=0&head=3&step=dropped&training=7&table=1")
    size = len(TEXT)
    rate, heads = 0.1, np.arange(4, dtype=np.int32)[:, None, None]  # the recipe's rate
    rows, columns = (np.arange(size, dtype=np.int32) for _ in range(2))
    batch = np.zeros((1, 1, 1), dtype=np.int32)
    like = np.zeros(1)
    kept = keep(rate, 7, batch, heads, rows[:, None], columns, like=like)[3]
    weights = traced[0]["blocks.0.attention.weights"][0, 3].astype(float)
    np.testing.assert_allclose(table(page), np.where(kept, weights / (1 - rate), 0), rtol=1e-12)
    assert "p = 0.1, seed 7" in page.inner_text(".picture")
    opened(page, f"{exported}#layer=0&head=3&step=context&training=7&table=1")
    values = traced[0]["blocks.0.attention.values"][0, 3].astype(float)
    dropped = np.where(kept, weights / (1 - rate), 0)
    np.testing.assert_allclose(table(page), dropped @ values, rtol=1e-10, atol=1e-10)
    opened(page, f"{exported}#layer=0&head=3&step=dropped&training=8&table=1")
    assert not np.array_equal(table(page) > 0, dropped > 0)  # drawn again


def test_a_cell_is_written_out(page, exported, traced):
    opened(page, f"{exported}#layer=1&head=0&step=weights&cell=6,4")
    steps = {
        name: traced[0][f"blocks.1.attention.{name}"][0, 0, 6]
        for name in ("scores", "scaled", "masked", "weights")
    }
    shown = page.locator("dl.exact dd").evaluate_all(
        "all => Object.fromEntries(all.map(dd => [dd.dataset.step, Number(dd.dataset.value)]))"
    )
    assert shown == {name: float(row[4]) for name, row in steps.items()}
    total = page.locator("strong[data-sum]")
    q, k = (traced[0][f"blocks.1.attention.{n}"][0, 0].astype(float) for n in ("queries", "keys"))
    assert float(total.get_attribute("data-sum")) == pytest.approx(q[6] @ k[4], rel=1e-12)
    assert "score[·, a] =" in page.inner_text("main")
    row = traced[0]["blocks.1.attention.weights"][0, 0, 6].astype(float)
    values = traced[0]["blocks.1.attention.values"][0, 0].astype(float)
    opened(page, f"{exported}#layer=1&head=0&step=weights&cell=6,4&table=1")
    np.testing.assert_allclose(table(page)[:-1], (row[:, None] * values)[:7], rtol=1e-6)
    np.testing.assert_allclose(table(page)[-1], row @ values, rtol=1e-5, atol=1e-6)
    sums = re.search(r"weight\[·, a\] = exp\((\S+) − (\S+)\) / (\S+) =", page.inner_text("main"))
    score, most, total = (float(part.strip("()").replace("−", "-")) for part in sums.groups())
    assert np.exp(score - most) / total == pytest.approx(row[4], rel=0.02)
    q, k = (traced[0][f"blocks.1.attention.{n}"][0, 0].astype(float) for n in ("queries", "keys"))
    largest = np.abs(q[6] * k[4]).argmax()
    assert f"feature {largest}: " in page.inner_text("main")


def test_the_next_token_at_any_temperature(page, exported, traced):
    opened(page, f"{exported}#temperature=0.5&top_k=5&query=3")
    logits = traced[0]["logits"][0, 3].astype(float) / 0.5
    top = np.sort(logits)[-5:]
    shares = np.exp(np.sort(logits)[::-1][:5] - top.max()) / np.exp(top - top.max()).sum()
    shown = page.locator(".next .number").evaluate_all(
        "all => all.map(x => Number(x.dataset.value))"
    )
    np.testing.assert_allclose(shown[:5], shares, rtol=1e-6)
    assert all(share == 0 for share in shown[5:])
    marked = page.inner_text(".next .bar[aria-current] .token")
    assert marked == TEXT[4].replace(" ", "·")


def test_playing_and_stepping_by_the_keyboard(page, exported):
    opened(page, f"{exported}#layer=0&head=1")
    step, keyboard = page.locator(".tile[aria-current]"), page.keyboard
    for name in ("scores", "scaled", "masked", "weights", "context"):
        expect(step).to_have_text(name)
        keyboard.press("ArrowRight")
    expect(step).to_have_text("output")
    keyboard.press("ArrowLeft")
    expect(step).to_have_text("context")
    keyboard.press("Space")  # plays
    expect(step).to_have_text("output")
    keyboard.press("Space")
    keyboard.press("]")
    expect(page.locator(".crumbs")).to_contain_text("Head 2")
    keyboard.press(".")
    expect(page.locator(".crumbs")).to_contain_text("Layer 1")
    keyboard.press(",")
    expect(page.locator(".crumbs")).to_contain_text("Layer 0")
    keyboard.press("Control+n")
    keyboard.press("n")
    expect(page.locator("table.numbers")).to_be_visible()
    keyboard.press("l")
    expect(page.locator("svg.lines")).to_be_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector(".flow")
    page.keyboard.press("Escape")
    page.wait_for_selector(".model")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").is_visible()


def test_a_cell_is_reached_without_a_mouse(page, exported, traced):
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    page.locator("svg.matrix[tabindex]").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    message = page.inner_text("dl.numbers")
    weight = traced[0]["blocks.1.attention.weights"][0, 2, 2, 1]
    assert f"weights\n{weight!s}" in message  # NumPy too prints the digits that a float32 has
    page.keyboard.press("Enter")
    expect(page.locator("dl.exact")).to_be_visible()
    assert "softmax of its row" in page.inner_text("main")


def test_pointing_at_a_token_lights_it_everywhere(page, exported):
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    page.hover(".tokens [data-token='3']")
    lit = page.locator(".lit-token").evaluate_all("all => all.map(x => x.dataset.token)")
    assert len(lit) >= 3
    assert set(lit) == {"3"}


def test_every_address_comes_back(page, exported):
    for state in (
        "",
        "layer=1",
        "layer=1&tensor=blocks.1.mlp.hidden",
        "ladder=1&rung=causal&diff=1",
    ):
        opened(page, f"{exported}#{state}")
        before = page.inner_text("nav"), page.locator("main *").count()
        page.reload()
        opened(page, f"{exported}#{state}")
        assert (page.inner_text("nav"), page.locator("main *").count()) == before


NONSENSE = (
    "layer=99",
    "layer=0&head=77",
    "step=nonsense&layer=0&head=0",
    "layer=0&head=0&cell=999,999",
    "tensor=nothing&layer=0",
    "query=5000",
    "at=9999,9999&layer=0&head=0",
    "rung=casual",
    "edit=bad",
    "temperature=-4",
    "layer=1e9",
    "%00=%ff&text=%ed%a0%80",
)


def test_an_invalid_address_still_shows_something(page, exported):
    for address in NONSENSE:
        opened(page, f"{exported}#{address}")
        assert page.locator("main h2, main h3").count() > 0, address
        assert page.locator(".error").count() == 0, address


def test_lines_lead_from_queries_to_keys(page, exported, traced):
    opened(page, f"{exported}#layer=1&head=2&step=weights&lines=1")
    weights = traced[0]["blocks.1.attention.weights"][0, 2]
    paths = page.locator("svg.lines path").evaluate_all(
        """all => all.map(path => [...path.getAttribute('d').match(/[0-9.]+/g).map(Number),
            Number(path.getAttribute('stroke-width'))])"""
    )
    assert len(paths) == (weights >= 0.005).sum()
    for x0, y0, *_, x1, y1, width in paths:
        assert x0 < x1
        query, key = (round((y - 28) / 24 - 0.5) for y in (y0, y1))
        assert width == pytest.approx(9 * weights[query, key], rel=1e-6)


@pytest.mark.parametrize("rung", ["fixed", "simplified", "stacked", "tiled"])
def test_a_run_with_a_rung_in_the_attentions_place(page, rung, tmp_path):
    (tmp_path / "text.txt").write_text("one and two and three and four and five. " * 40)
    sizes = {"context": 32, "width": 12, "layers": 1, "heads": 2, "steps": 2, "batch": 2}
    headway.train(
        str(tmp_path / "text.txt"),
        name=rung,
        rung=rung,
        runs=str(tmp_path),
        tokenizer="char",
        **sizes,
    )
    tracer = ModelTracer(find(rung, str(tmp_path)))
    tensors, manifest = WithLadder(tracer).trace(TraceRequest("one and two", write=3))
    (tmp_path / "page.html").write_text(export.page(tensors, manifest))
    at, size = (tmp_path / "page.html").as_uri(), len(manifest["tokens"])
    for state in ("", "layer=0", "layer=0&head=0&step=scores", "layer=0&head=0&step=context"):
        opened(page, f"{at}#{state}")
        assert page.locator("main h2").count() > 0
    head = 1 if rung == "stacked" else 0
    name = "blocks.0.attention" + (".heads.1" if rung == "stacked" else "")
    opened(page, f"{at}#layer=0&head={head}&step=weights&table=1")
    shown = table(page)
    assert page.locator("table.numbers td", has_text="╱").count() == size * (size - 1) // 2
    np.testing.assert_allclose(shown.sum(1), 1, rtol=1e-5)
    if rung != "tiled":  # which never has them
        assert np.array_equal(shown, tensors[f"{name}.weights"].reshape(-1, size, size)[0])
    opened(page, f"{at}#layer=0&head={head}&step=weights&cell=4,2")
    sums = re.search(r"weight\[.*?\] = (.*)", page.inner_text("main"))[1]
    *_, quotient, weight = sums.split(" = ")
    above, below = map(float, quotient.split(" / "))
    assert above / below == pytest.approx(float(weight), rel=0.02)
    assert float(weight) == pytest.approx(shown[4, 2], rel=0.006)


NASTY = [
    "</script><img/src=x/onerror=fired()>",
    "\"'`<b>${fired()}</b>",
    "\u202egnp.exe",
    "a\u2028b",
    "\ud800",
    "<!--",
    "]]>",
    "javascript:fired()",
    "\x00\x1b[31m",
]


def test_no_token_or_name_becomes_a_script(page, run, tmp_path):
    named = tmp_path / "<img src=x onerror=fired()>&quot;'\u202e"
    named.symlink_to(run.path)
    pages = [
        LadderTracer().trace(TraceRequest(" ".join(NASTY))),
        WithLadder(ModelTracer(StoredModel.open(named))).trace(
            TraceRequest("".join(NASTY[:4]), write=2)
        ),
    ]
    for at, (tensors, manifest) in enumerate(pages):
        file = tmp_path / f"{at}.html"
        nasty = "text=</script><img src=x onerror=fired()>"
        file.write_text(export.page(tensors, manifest, nasty))
        file.write_text(file.read_text().replace(json.dumps(nasty).replace("<", "\\u003c"), '""'))
        assert "fired" not in file.read_text()  # all of it is in base64
        page.add_init_script(
            "window.times = 0; window.alert = window.fired = () => { window.times += 1; }"
        )
        for state in (
            "",
            "#layer=0&head=0&step=weights&table=1",
            "#layer=0&head=0&cell=1,1",
            "#lines=1&layer=0&head=0",
            "#rung=causal&head=0&table=1",
            "#layer=0&head=0&step=context&present=1&frame=2",
            "#rung=tiled&head=0&step=context&present=1&frame=1",
            "#ladder=1&rung=<b>x</b>&present=1",
            "#text=<img src=x onerror=fired()>",
            "#rung=<img src=x onerror=fired()>",
            "#layer=0&tensor=<script>fired()</script>",
            "#edit=<img src=x onerror=fired()>|<b>|0",
        ):
            opened(page, f"{file.as_uri()}{state}")
            assert page.evaluate("window.times") == 0
            assert page.locator("main img, header img, .tokens img, b").count() == 0
    opened(page, (tmp_path / "0.html").as_uri())
    shown = page.locator(".tokens .token").all_inner_texts()
    assert shown[0] == NASTY[0]
    assert shown[2] == "\\u202egnp.exe"


def test_the_file_works_with_the_network_off(browser, exported):
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, f"{exported}#layer=1&head=2&step=weights")
    assert page.locator("svg.matrix rect").count() > 50
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert page.locator("#text").is_disabled()
    assert "headway explore tiny" in page.inner_text("aside")
    context.close()


def test_nothing_leaves_a_file_even_if_a_script_wanted_to(page, exported):
    opened(page, exported)
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'refused')")
        == "refused"
    )
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert re.fullmatch(
        r"default-src 'none'; script-src 'nonce-\w{32}'; style-src 'nonce-\w{32}'; "
        r"img-src data: blob:; base-uri 'none'; form-action 'none'",
        policy,
    )


def test_a_trace_or_a_run_in_a_notebook_is_the_page(page, run):
    queries = torch.randn(1, 2, 5, 4)
    with headway.trace() as steps:
        headway.attend(queries, queries, queries, causal=True, kernel="plain")
    page.set_content(show(steps, "one two three four five")._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator("main canvas").first.wait_for()
    frame.locator(".band a.head").last.click()
    frame.locator(".tile").first.wait_for()
    assert frame.locator("svg.matrix text.label").first.text_content().endswith("one")
    inline = show(run, TEXT)._repr_html_()
    assert 'sandbox="allow-scripts allow-downloads"' in inline  # nothing of the notebook's
    page.set_content(inline)
    expect(frame.locator(".tokens .token")).to_have_count(len(TEXT))
    with pytest.raises(ValueError, match="must have 5 tokens"):
        show(steps, "one two")
    with headway.trace() as empty:
        headway.tap("x", queries)
    with pytest.raises(ValueError, match="the trace has no attention of one shape"):
        show(empty)


STATES = (
    "",
    "layer=1",
    "layer=1&head=1&step=scores",
    "layer=1&head=1&step=context",
    "layer=0&head=0&cell=3,1",
    "ladder=1",
)


def test_a_phone_is_wide_enough(page, exported):
    page.set_viewport_size({"width": 390, "height": 800})
    for state in STATES:
        opened(page, f"{exported}#{state}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, state


def test_what_is_too_large_is_refused_with_advice(traced, monkeypatch):
    monkeypatch.setattr(export, "MOST", 1000)
    with pytest.raises(ValueError, match="give a shorter text, or remove --html"):
        export.page(*traced)


def test_large_files_are_reduced_in_order(traced, monkeypatch):
    tensors, manifest = traced
    complete, about = export.reduced(tensors, manifest)
    assert complete.keys() == tensors.keys()
    assert about["left_out"] == []
    monkeypatch.setattr(export, "AIM", 0)
    monkeypatch.setattr(export, "LOGITS", 2 * tensors["logits"][0, 0].nbytes)
    less, about = export.reduced(tensors, manifest)
    assert np.array_equal(less["logits"], tensors["logits"][:, -2:])
    assert set(about["left_out"]) == tensors.keys() - less.keys()
    assert "blocks.1.attention.queries" in less
    assert "blocks.1.attention.weights" not in less
    assert "blocks.1.after_mlp" not in less
    assert json.loads(json.dumps(about))["steps"] == manifest["steps"]


def test_a_lean_file_still_shows_every_level(page, traced, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "AIM", 0)
    monkeypatch.setattr(export, "LOGITS", 3 * traced[0]["logits"][0, 0].nbytes)
    (tmp_path / "lean.html").write_text(export.page(*traced))
    for state, shown in {
        "": ".band",
        "layer=1": ".flow",
        "layer=1&head=1": ".tile",
        "layer=0&head=0&cell=3,1": ".sum",
    }.items():
        opened(page, f"{(tmp_path / 'lean.html').as_uri()}#{state}")
        assert page.locator(shown).count() > 0
    opened(page, f"{(tmp_path / 'lean.html').as_uri()}#layer=1")
    assert "left out of this file" in page.inner_text("main")
    last = len(TEXT) - 1
    opened(page, f"{(tmp_path / 'lean.html').as_uri()}#query={last - 1}")
    logits = traced[0]["logits"][0, last - 1].astype(float)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    shown = page.locator(".next .number").first.get_attribute("data-value")
    assert float(shown) == pytest.approx(shares.max(), rel=1e-6)
    opened(page, f"{(tmp_path / 'lean.html').as_uri()}#query={last - 3}")
    assert "left out of this file" in page.inner_text(".next")
