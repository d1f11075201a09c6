"""The presentation: readable from the last row, its frames, and its keys."""

import json
from importlib import resources

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

import headway
from headway.attention import masks, online
from headway.attention.grid import grid_of
from headway.attention.spec import Spec
from headway.explore import export
from headway.explore.notebook import show
from headway.explore.tracers import LadderTracer, ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from pages import opened, settled

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "abcabdabcabe"
SENTENCE = "you walk astray; dreams pull back"
AT = "layer=1&head=3&present=1"
PREFIX = "blocks.1.attention."
PROJECTOR = {"width": 1920, "height": 1080}
FONTS = """() => [...document.querySelectorAll("main [data-value]")].map(
    (one) => parseFloat(getComputedStyle(one).fontSize) * one.currentCSSZoom)"""
SPARE = """() => {
    const main = document.querySelector("main"), inside = main.firstElementChild;
    const [room, box] = [main.getBoundingClientRect(), inside.getBoundingClientRect()];
    const { scrollWidth, scrollHeight } = document.scrollingElement;
    return {
        width: innerWidth - scrollWidth, height: innerHeight - scrollHeight,
        below: room.bottom - box.bottom, right: room.right - box.right,
        inside: inside.clientWidth - inside.scrollWidth,
        strip: innerHeight - document.querySelector("footer").getBoundingClientRect().bottom,
    };
}"""


@pytest.fixture(scope="module")
def traced(modern):
    return WithLadder(ModelTracer(StoredModel.open(modern.path))).trace(TraceRequest(TEXT))


@pytest.fixture(scope="module")
def exported(traced, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(export.page(*traced))
    return file.as_uri()


@pytest.fixture(scope="module")
def ladder():
    return LadderTracer().trace(TraceRequest(SENTENCE))


def frames(page, call, **numbers):
    """What an expression of the names in frames.js returns; matrices are given as arrays."""
    matrices = {
        name: {"data": one.ravel().tolist(), "rows": len(one), "columns": one.shape[-1]}
        for name, one in numbers.items()
    }
    given = json.dumps(matrices).replace("-Infinity", "-1/0")
    script = resources.files("headway.explore").joinpath("static/frames.js").read_text()
    page.goto("about:blank")
    code = f"""async (script) => {{
        const {{ count, dotFrame, softmaxFrames, contextFrame, tileFrames }} =
            await import("data:text/javascript," + encodeURIComponent(script));
        const {{ {", ".join(numbers)} }} = {given};
        return {call};
    }}"""
    return page.evaluate(code, script)


def numbers(page, selector, name="value"):
    """The numbers in an attribute of the elements, in the order of the page."""
    values = page.locator(selector).evaluate_all(
        f"all => all.map(one => String(+one.dataset.{name}))"
    )
    return np.array([float(x.replace("Infinity", "inf")) for x in values])


def steps(page, exported):
    opened(page, f"{exported}#{AT}")
    return page.locator(".names a").evaluate_all("all => all.map(a => a.getAttribute('href'))")


def check_fits(page):
    spare = page.evaluate(SPARE)
    assert min(spare.values()) >= -1, (spare, page.url)


@pytest.mark.parametrize("more", ["", "&training=3&at=3,2"])
@pytest.mark.parametrize("size", [(1920, 1080), (1280, 800)])
def test_every_step_fits_and_is_readable(page, exported, size, more):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    least = 36 * min(size[0] / 1920, size[1] / 1080)
    for address in steps(page, exported):
        for frame in ("", "&frame=0", "&frame=8"):
            opened(page, f"{exported}{address}{frame}{more}")
            check_fits(page)
            assert min(page.evaluate(FONTS)) >= least - 0.01, page.url


def test_every_level_fits_and_is_readable(page, exported):
    page.set_viewport_size(PROJECTOR)
    for state in (
        "present=1",
        "present=1&frame=1",
        "present=1&layer=1",
        *(f"{AT}&step=weights&cell=5,3&frame={part}" for part in range(5)),
        *(f"present=1&ladder=1&rung={rung}" for rung in ("fixed", "stacked", "multihead")),
        "present=1&rung=tiled&head=1&step=context&frame=1",
    ):
        opened(page, f"{exported}#{state}")
        check_fits(page)
        if "cell" not in state:
            assert min(page.evaluate(FONTS), default=36) >= 36, state
        assert page.locator("aside, header form, .tile").count() == 0
        assert page.inner_text("header p")


def test_the_number_in_a_cell_is_the_engines(page, exported, traced):
    page.set_viewport_size(PROJECTOR)
    opened(page, f"{exported}#{AT}&step=scores")
    scores = traced[0][PREFIX + "scores"][0, 3, :8, :8]
    assert np.array_equal(numbers(page, "svg.matrix text[data-value]").reshape(8, 8), scores)
    opened(page, f"{exported}#{AT}&step=scores&frame=2")
    assert np.array_equal(numbers(page, "svg.matrix text[data-value]").reshape(3, 8), scores[:3])
    np.testing.assert_allclose(numbers(page, ".line strong"), scores[2].max(), rtol=1e-5)


@pytest.mark.parametrize(("first", "left"), [(0, 0), (4, 2)])
def test_the_frames_of_the_softmax_are_numpys(page, exported, traced, first, left):
    page.set_viewport_size(PROJECTOR)
    masked = traced[0][PREFIX + "masked"][0, 3].astype(float)
    row = 5
    scores = masked[first + row]
    raised = np.exp(scores - scores.max())
    window = slice(left, left + 8)
    for frame, shown in enumerate(("exponentials", "sum", "division")):
        state = f"{AT}&step=weights&at={first},{left}&frame={3 * row + frame}"
        opened(page, f"{exported}#{state}")
        np.testing.assert_allclose(numbers(page, "tr[data-row=masked] td"), scores[window])
        np.testing.assert_allclose(numbers(page, "tr[data-row=exp] td"), raised[window])
        total = numbers(page, "td.total[data-sum]", "sum")
        weights = numbers(page, "tr[data-row=weight] td[data-value]")
        if shown == "exponentials":
            assert total.size == 0
        else:
            np.testing.assert_allclose(total, raised.sum())
        if shown == "division":
            np.testing.assert_allclose(weights, raised[window] / raised.sum())
        else:
            assert weights.size == 0


def test_the_frames_of_all_rows_are_numpys(page, traced):
    masked = traced[0][PREFIX + "masked"][0, 3].astype(float)
    made = frames(page, "softmaxFrames(masked)", masked=masked)
    assert [one["part"] for one in made[:3]] == ["exponentials", "sum", "division"]
    expected = np.exp(masked - masked.max(1, keepdims=True))
    np.testing.assert_allclose([one["raised"] for one in made[::3]], expected)
    np.testing.assert_allclose(
        [one["weights"] for one in made[::3]], expected / expected.sum(1, keepdims=True)
    )


def test_a_row_that_may_attend_to_nothing_has_weights_of_zero(page):
    scores = np.array([[-np.inf, -np.inf], [1.0, -np.inf]])
    made = frames(page, "softmaxFrames(scores)", scores=scores)
    assert [one["weights"] for one in made[::3]] == [[0, 0], [1, 0]]


def test_the_terms_of_the_context_add_up(page, exported, traced):
    page.set_viewport_size(PROJECTOR)
    tensors, _ = traced
    weights, values = tensors[PREFIX + "weights"][0, 3], tensors[PREFIX + "values"][0, 1]
    row = 6
    opened(page, f"{exported}#{AT}&step=context&frame={row}")
    shown = numbers(page, "svg.matrix text[data-value]").reshape(row + 2, -1)
    np.testing.assert_allclose(shown[:-1], (weights[row, :, None] * values)[: row + 1], rtol=1e-5)
    np.testing.assert_allclose(shown[-1], tensors[PREFIX + "context"][0, 3, row], atol=1e-5)
    made = frames(page, "contextFrame(weights, values, 11, 2, 5)", weights=weights, values=values)
    np.testing.assert_allclose(made["terms"], (weights[11, :, None] * values)[2:5], rtol=1e-6)
    np.testing.assert_allclose(np.sum(made["terms"], 0) + made["others"], made["total"])


def test_the_tiles_are_the_states_of_the_online_softmax(page, ladder, tmp_path):
    tensors, manifest = ladder
    queries, keys, values = (
        tensors[f"ladder.tiled.{role}"].astype(float) for role in ("queries", "keys", "values")
    )
    spec = Spec(mask=masks.causal)
    grid = grid_of(queries, keys, spec)
    state = online.start(queries, values, spec, grid)
    expected = []
    for first in range(0, keys.shape[-2], 2):
        columns = slice(first, first + 2)
        part = keys[..., columns, :], values[..., columns, :]
        state = online.with_block(state, queries, *part, spec, grid.select(columns=columns))
        expected.append(state)
    context = tensors["ladder.tiled.context"]
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    for head in range(2):
        made = frames(page, "tileFrames(scores, values)", scores=scores[head], values=values[head])
        assert frames(page, f"count('tiles', 8, {keys.shape[-2]})") == len(made)
        for frame, state in zip(made, expected, strict=False):
            for name in ("largest", "total"):
                got = np.array([one[name] for one in frame["rows"]], dtype=float)
                finite = np.isfinite(getattr(state, name)[head, :, 0])
                np.testing.assert_allclose(
                    got[finite], getattr(state, name)[head, finite, 0], rtol=1e-12
                )
            outputs = [one["output"] for one in frame["rows"]]
            np.testing.assert_allclose(outputs, state.context[head], rtol=1e-12, atol=1e-15)
        last = [one["output"] for one in made[-1]["rows"]]
        np.testing.assert_allclose(last, context[head], rtol=0, atol=1e-12)
        assert any(0 < one["shrink"] < 1 for frame in made[1:] for one in frame["rows"])
    (tmp_path / "page.html").write_text(export.page(tensors, manifest))
    address = f"{(tmp_path / 'page.html').as_uri()}#present=1&rung=tiled&head=1&step=context"
    page.set_viewport_size(PROJECTOR)
    for at, state in enumerate(expected):
        opened(page, f"{address}&frame={at}")
        np.testing.assert_allclose(numbers(page, "td[data-name=l]"), state.total[1, :, 0])
        np.testing.assert_allclose(
            numbers(page, "td[data-name=c]"), state.context[1].ravel(), atol=1e-12
        )
    opened(page, f"{address}&frame={len(expected)}")
    np.testing.assert_allclose(
        numbers(page, "td[data-name=c]"), context[1].ravel(), rtol=0, atol=1e-12
    )
    assert "equals the context" in page.inner_text(".line")
    assert numbers(page, ".line strong")[0] < 1e-12


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    settled(page)
    return page.inner_text(".names [aria-current]"), frame_of(page)


def frame_of(page):
    return page.evaluate("new URLSearchParams(location.hash.slice(1)).get('frame')")


def test_keys_go_through_frames_and_steps(page, exported):
    page.set_viewport_size(PROJECTOR)
    opened(page, f"{exported}#layer=1&head=3&step=scores")
    assert press(page, "p") == ("scores", None)
    assert press(page, "ArrowRight") == ("scaled", None)
    assert press(page, "PageUp") == ("scores", None)
    page.click("text=row by row")
    settled(page)
    assert frame_of(page) == "0"
    assert press(page, "ArrowRight", "PageDown") == ("scores", "2")
    assert press(page, "ArrowLeft") == ("scores", "1")
    assert press(page, *["PageDown"] * 7) == ("scaled", "0")  # eight rows
    assert press(page, "PageUp") == ("scores", "7")
    opened(page, f"{exported}#{AT}&step=weights&frame=23")
    assert press(page, "ArrowRight") == ("context", "0")
    assert press(page, "ArrowLeft") == ("weights", "23")
    page.click("button[aria-label=next]")
    settled(page)
    assert frame_of(page) == "0"
    page.click("button[aria-label=back]")
    settled(page)
    assert frame_of(page) == "23"
    opened(page, f"{exported}#{AT}&step=x")
    assert press(page, "ArrowLeft") == ("x", None)


def test_keys_go_through_rungs_and_sections(page, exported):
    opened(page, f"{exported}#present=1&ladder=1&rung=dropout")
    assert press(page, "ArrowRight") == ("stacked", "0")
    assert press(page, "ArrowRight") == ("stacked", "1")
    assert press(page, "ArrowRight") == ("multihead", "0")
    assert press(page, "ArrowLeft") == ("stacked", "1")
    opened(page, f"{exported}#{AT}&step=weights&cell=5,3")
    assert press(page, "ArrowRight", "ArrowRight")[0] == "2. Scaled, masked"
    assert press(page, "ArrowRight")[0] == "3. The softmax of its row"
    assert press(page, *["ArrowRight"] * 4)[0] == "4. The weighted sum of the values"
    opened(page, f"{exported}#present=1")
    assert press(page, "ArrowRight")[0] == "next token"
    assert page.locator(".bars").count() == 1


def test_p_and_escape_leave_to_where_it_began(page, exported):
    start = f"{exported}#layer=1&head=3&step=masked"
    for key in ("p", "Escape"):
        opened(page, start)
        page.keyboard.press("p")
        settled(page)
        assert page.locator("aside").count() == 0
        page.click("text=row by row")
        settled(page)
        page.keyboard.press(key)
        settled(page)
        assert page.url == start
        assert page.locator("aside").count() == 1
        assert page.evaluate("document.body.style.zoom") == "1"


def test_space_plays_the_frames(page, exported):
    opened(page, f"{exported}#layer=1&head=3&step=scores")
    page.click("text=row by row")
    settled(page)
    page.click("text=row by row")  # complete again
    settled(page)
    page.keyboard.press("Space")
    page.wait_for_url("**step=scores&present=1&frame=0")
    page.wait_for_url("**step=scores&present=1&frame=2")
    page.keyboard.press("Space")
    settled(page)
    paused = page.url
    page.wait_for_timeout(1500)
    assert page.url == paused
    assert page.locator("button[aria-label=play]").count() == 1


def test_row_by_row_begins_outside_of_the_presentation(page, exported):
    opened(page, f"{exported}#layer=1&head=3&step=scores")
    page.click("text=row by row")
    settled(page)
    assert page.url.endswith("step=scores&present=1&frame=0")


def test_a_phone_presents_too(page, exported):
    page.set_viewport_size({"width": 390, "height": 844})
    for address in steps(page, exported):
        opened(page, f"{exported}{address}&frame=2")
        check_fits(page)
        assert min(page.evaluate(FONTS), default=36) >= 12, address


def test_a_notebook_presents_too(page):
    queries = torch.randn(1, 2, 5, 4)
    with headway.trace() as trace:
        headway.attend(queries, queries, queries, causal=True, kernel="plain")
    page.set_content(show(trace, "one two three four five")._repr_html_())
    frame = page.frame_locator("iframe")
    frame.locator(".band a.head").first.click()
    frame.locator("text=row by row").first.click()
    frame.locator(".outlined").first.wait_for()
    shown = frame.locator("svg.matrix text[data-value]")
    expect(shown).to_have_count(5)
    page.keyboard.press("ArrowRight")
    expect(shown).to_have_count(10)
    page.keyboard.press("Space")  # plays
    expect(shown).to_have_count(15)
    page.keyboard.press("p")
    frame.locator("aside").wait_for()
