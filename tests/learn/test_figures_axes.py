"""The figure `axes`: its shapes and numbers are those of the ladder, also with padding."""

import numpy as np
import pytest

from figures import array, called, drawn, said
from headway import attend
from headway.attention.heads import merge, split
from headway.attention.masks import both, causal, padding
from headway.ladder.rung import words_and_inputs
from headway.ladder.trainable import BOOK

pytestmark = pytest.mark.xdist_group("browser")
TEXTS = ["Your journey starts with one step", "With one step your journey starts"]
PADDED = ["Your journey starts with one step", "Your journey starts", "one step"]
FILL = "░"


def test_each_operation_has_the_numbers_of_the_formula(page):
    got = called(page, "axes", "computed", TEXTS)
    x = np.stack([words_and_inputs(text)[1] for text in TEXTS])
    query, key, value = (BOOK[f"W_{name}"] for name in ("query", "key", "value"))
    two = [np.concatenate(pair, -1) for pair in ((query, key), (key, value), (value, query))]
    projected = [x @ matrix for matrix in two]
    queries, keys, values = (split(one, 2) for one in projected)
    context = attend(queries, keys, values)
    right = {
        "x": x[:, None],
        "projected": projected[0][:, None],
        "split": queries,
        "scores": queries @ keys.swapaxes(-1, -2),
        "context": context,
        "merged": merge(context)[:, None],
    }
    for name, expected in right.items():
        np.testing.assert_allclose(
            [[array(one) for one in heads] for heads in got[name]], expected, rtol=1e-12
        )


def test_the_shapes_are_those_of_the_matrices(page):
    drawn(page, "axes", {"texts": TEXTS})
    results = called(page, "axes", "computed", TEXTS)
    for name in results:
        page.get_by_role("button", name=name, exact=True).press("Enter")
        last = page.locator(".moment").last
        axes = dict(
            last.locator(".axis").evaluate_all(
                "all => all.map(one => [one.dataset.axis, Number(one.children[0].innerText)])"
            )
        )
        first = results[name][0][0]
        shape = [len(results[name]), len(results[name][0]), first["rows"], first["columns"]]
        expected = [size for i, size in enumerate(shape) if i != 1 or "heads" in axes]
        assert list(axes.values()) == expected
        assert last.locator("svg").count() == shape[0] * shape[1]
        assert page.locator("dt").all_inner_texts() == list(axes)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_contexts_of_texts_with_padding(page, side, is_causal, masked):
    layout = {"side": side, "extra": 2, "causal": is_causal, "masked": masked}
    rows = called(page, "axes", "batch", PADDED, layout)
    many, length = [len(text.split()) for text in PADDED], 8
    for row, text, count in zip(rows, PADDED, many, strict=True):
        fill = " ".join([FILL] * (length - count))
        x = words_and_inputs(f"{fill} {text}" if side == "left" else f"{text} {fill}")[1]
        mask = causal if is_causal else None
        if masked:
            keys = padding(np.array([length - count if side == "left" else count]))
            mask = both(mask, ~keys if side == "left" else keys)
        three = (x @ BOOK[f"W_{name}"] for name in ("query", "key", "value"))
        expected = attend(*three, mask=mask)
        np.testing.assert_allclose(array(row["context"]), expected, rtol=1e-12, atol=1e-15)


def test_without_the_padding_mask_the_context_follows_the_padding(page):
    options = {"view": "padding", "texts": PADDED}
    drawn(page, "axes", options)
    more = page.get_by_label("more padding")
    more.focus()
    assert said(page)["difference"] == "0"
    page.keyboard.press("End")
    assert page.locator("tbody tr").first.locator("td").count() == 10
    assert said(page)["difference"] == "0"
    drawn(page, "axes", options, broken=True)
    before = said(page)
    more.focus()
    page.keyboard.press("End")
    after = said(page)
    assert "0" not in (before["difference"], after["difference"])
    assert before["in this batch"] != after["in this batch"]
    alone = before["context of “step”, its text alone"]
    x = words_and_inputs("one step")[1]
    context = attend(*(x @ BOOK[f"W_{name}"] for name in ("query", "key", "value")))[-1]
    assert alone == "({:.3g}, {:.3g})".format(*context)


def test_the_causal_mask_hides_padding_on_the_right_only(page):
    drawn(page, "axes", {"view": "padding", "texts": PADDED}, broken=True)
    page.get_by_label("causal mask").check()
    assert said(page)["difference"] == "0"
    page.get_by_label("padding on the").select_option("left")
    assert said(page)["difference"] != "0"


def test_the_short_text_can_be_typed(page):
    drawn(page, "axes", {"view": "padding", "texts": PADDED})
    page.get_by_label("Sentence").fill("the old dog chased the quick fox")
    assert page.locator(".texts tr").last.locator("td:not(.padding)").count() == 7
    assert page.locator(".texts td.padding").count() == 1 + 4
    assert "context of “fox”, its text alone" in said(page)
    page.get_by_label("Sentence").fill(" ")
    assert page.locator(".texts").count() == 0
