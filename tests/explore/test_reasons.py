"""Why this weight: the parts of a score on the page are those of a separate computation in float64,
from the parameters of the model."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import headway
from gpts import MODERN, gpt_config
from headway.explore import export, trace_file
from headway.explore.edits import Edit
from headway.explore.tracers import ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from pages import opened, settled

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "abcabdac"
HEADS = 4
CONFIGS = {
    "gpt2": gpt_config(256, 12, 24, 3, HEADS),
    "modern": gpt_config(256, 12, 24, 3, HEADS, kv_heads=2, **MODERN),
    "alibi": gpt_config(256, 12, 272, 3, HEADS, positions="alibi"),  # tensors above COMPLETE
    "sinusoidal, QK-norm": gpt_config(256, 12, 24, 3, HEADS, positions="sinusoidal", qk_norm=True),
    "no positions": gpt_config(256, 12, 24, 3, HEADS, positions="none", norm="rms"),
}
CELLS = {"gpt2": (2, 3, 7, 4), "modern": (2, 3, 6, 2), "alibi": (2, 1, 5, 5)}  # layer, head, i, j
CELLS |= {"sinusoidal, QK-norm": (1, 0, 7, 1), "no positions": (2, 2, 4, 3)}


class Computed:
    """The model in float64: `streams[layer]` has the parts of what a layer reads, by their name."""

    def __init__(self, tracer):
        self.config = tracer.config
        named = tracer.engine.parameters(tracer.model)
        self.p = {name: x.detach().double().numpy() for name, x in named.items()}
        tokens = np.array(tracer.tokenizer.encode(TEXT))
        self.streams = [self._embedded(tokens)]
        for layer in range(self.config.layers):
            self.streams.append(self._after(layer, dict(self.streams[-1])))

    def _embedded(self, tokens):
        parts = {"token": self.p["embedding.weight"][tokens]}
        count, width = len(tokens), self.config.width
        if self.config.positions.kind == "learned":
            parts["position"] = self.p["position_embedding.weight"][:count]
        if self.config.positions.kind == "sinusoidal":
            angle = np.arange(count)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
            parts["position"] = np.empty((count, width))
            parts["position"][:, 0::2] = 0.02 * 2**0.5 * np.sin(angle)
            parts["position"][:, 1::2] = 0.02 * 2**0.5 * np.cos(angle)
        if self.config.norm.kind == "layer":
            parts["biases"] = np.zeros((count, width))
        return parts

    def _after(self, layer, parts):
        queries, keys = (self.side(layer, role, sum(parts.values())) for role in "qk")
        x = self.norm(f"blocks.{layer}.attention_norm", sum(parts.values()))
        values = self.by_head(layer, "v", x)
        d_k = self.config.d_k
        for head in range(HEADS):
            own = head * values.shape[0] // HEADS
            weights = softmax(self.logits(head, queries[head] @ keys[own].T))
            columns = slice(head * d_k, (head + 1) * d_k)
            matrix = self.p[f"blocks.{layer}.attention.output.weight"][:, columns]
            parts[f"h{layer}.{head}"] = weights @ values[own] @ matrix.T
        if "biases" in parts:
            parts["biases"] = parts["biases"] + self.p[f"blocks.{layer}.attention.output.bias"]
        x = self.norm(f"blocks.{layer}.mlp_norm", sum(parts.values()))
        parts[f"m{layer}"] = self.mlp(f"blocks.{layer}.mlp", x)
        return parts

    def mlp(self, name, x):
        inside = self.linear(f"{name}.up", x)
        if self.config.mlp.kind == "swiglu":
            gate = self.linear(f"{name}.gate", x)
            return self.linear(f"{name}.down", gate / (1 + np.exp(-gate)) * inside)
        cubic = np.sqrt(2 / np.pi) * (inside + 0.044715 * inside**3)
        return self.linear(f"{name}.down", inside * (1 + np.tanh(cubic)) / 2)

    def linear(self, name, x, bias=True):
        result = x @ self.p[f"{name}.weight"].T
        return result + self.p.get(f"{name}.bias", 0) if bias else result

    def norm(self, name, x, like=None, bias=True):
        """like: the vectors whose mean and deviation are used, by default x."""
        like = x if like is None else like
        if self.config.norm.kind == "layer":
            x, like = x - x.mean(-1, keepdims=True), like - like.mean(-1, keepdims=True)
        x = x / np.sqrt((like**2).mean(-1, keepdims=True) + 1e-5) * self.p[f"{name}.weight"]
        return x + self.p.get(f"{name}.bias", 0) if bias else x

    def by_head(self, layer, role, x, bias=True):
        x = self.linear(f"blocks.{layer}.attention.{role}", x, bias)
        return x.reshape(len(x), -1, self.config.d_k).swapaxes(0, 1)

    def side(self, layer, role, x, like=None, bias=True):
        """Queries or keys (heads, tokens, d_k); like: as in `norm`."""
        name = f"blocks.{layer}.attention"
        whole = x if like is None else like
        result = self.by_head(
            layer, role, self.norm(f"{name}_norm", x, whole, bias=bias), bias=bias
        )
        if self.config.attention.qk_norm:
            full = self.by_head(layer, role, self.norm(f"{name}_norm", whole))
            size = np.sqrt((full**2).mean(-1, keepdims=True) + 1e-5)
            if like is None:
                size = np.sqrt((result**2).mean(-1, keepdims=True) + 1e-5)
            result = result / size * self.p[f"{name}.{role}_norm.weight"]
        if self.config.positions.kind == "rotary":
            half = self.config.d_k // 2
            angle = np.arange(len(x))[:, None] * 10000.0 ** -(np.arange(half) / half)
            a, b = result[..., :half], result[..., half:]
            turned = [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)]
            result = np.concatenate(turned, -1)
        return result

    def logits(self, head, scores):
        """Scaled scores with the bias, and the causal mask."""
        distance = np.arange(len(TEXT))[:, None] - np.arange(len(TEXT))
        scores = scores / np.sqrt(self.config.d_k)
        if self.config.positions.kind == "alibi":
            scores = scores - 2.0 ** (-8 * (head + 1) / HEADS) * distance
        return np.where(distance >= 0, scores, -np.inf)

    def of_cell(self, layer, head, query, key):
        """The scores of the row, and a function that gives them after parts are deleted."""
        parts = self.streams[layer]
        whole = sum(parts.values())
        own = {"q": head, "k": head * self.config.attention.groups // HEADS}
        complete = {role: self.side(layer, role, whole)[own[role]] for role in "qk"}

        def scores(deleted, frozen):
            sides = {role: x.copy() for role, x in complete.items()}
            for role, at in (("q", query), ("k", key)):
                gone = [name for side, name in deleted if side == role]
                removed = sum((parts[name] for name in gone), np.zeros_like(whole))
                keeps_bias = "biases" not in gone
                if not gone:
                    continue
                if frozen:
                    lost = self.side(layer, role, removed, whole, bias=not keeps_bias)
                    sides[role][at] -= lost[own[role]][at]
                else:
                    left = self.side(layer, role, whole - removed, bias=keeps_bias)
                    sides[role][at] = left[own[role]][at]
            return sides["q"][query] @ sides["k"].T

        return list(parts), scores


def softmax(scores):
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def traced(new_run, tmp_path_factory):
    """For a name in CONFIGS: the computed model, its trace, and the address of its page."""

    @cache
    def of(name):
        run = new_run(CONFIGS[name])
        tracer = ModelTracer(StoredModel.open(run.path))
        trace = tracer.trace(TraceRequest(TEXT))
        file = tmp_path_factory.mktemp("page") / "page.html"
        file.write_text(export.page(*trace))
        return Computed(tracer), trace, file.as_uri()

    return of


def rows(page):
    """What the page says of each part: adds, measured, difference."""
    table = page.locator("table.parts tr[data-part]").evaluate_all(
        """all => all.map(row => [row.dataset.part,
            [...row.querySelectorAll('td[data-value]')].map(td => Number(td.dataset.value))])"""
    )
    return dict(table)


def outcome(page):
    """The lines of the table about what is deleted: complete, predicted, measured."""
    lines = page.locator(".outcome tr[data-line]").evaluate_all(
        """all => all.map(row => [row.dataset.line,
            [...row.querySelectorAll('td')].map(td => Number(td.dataset.value ?? NaN))])"""
    )
    return dict(lines)


def address(layer, head, query, key, deleted=()):
    parts = ",".join(f"{side}:{name}" for side, name in deleted)
    return f"layer={layer}&head={head}&step=weights&cell={query},{key}&deleted={parts}"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parts_and_what_the_score_loses_without_each(page, traced, name):
    computed, (tensors, _), at = traced(name)
    layer, head, query, key = CELLS[name]
    opened(page, f"{at}#{address(layer, head, query, key)}")
    score = float(tensors[f"blocks.{layer}.attention.scores"][0, head, query, key])
    sums = page.locator("table.parts").evaluate_all("all => all.map(one => +one.dataset.sum)")
    np.testing.assert_allclose(sums, score, rtol=1e-5, atol=1e-5)
    shown = rows(page)
    names, scores = computed.of_cell(layer, head, query, key)
    before = scores([], frozen=True)[key]
    assert before == pytest.approx(score, rel=1e-4)
    others = {side: shown.pop(f"{side}:others") for side in "qk" if f"{side}:others" in shown}
    assert shown.keys() == {f"{side}:{part}" for side in "qk" for part in names}
    lost = {
        f"{side}:{part}": [before - scores([(side, part)], frozen)[key] for frozen in (True, False)]
        for side in "qk"
        for part in names
    }
    size = max(abs(predicted) for predicted, _ in lost.values())
    for part, (predicted, measured) in lost.items():
        expected = [predicted, measured, measured - predicted]
        np.testing.assert_allclose(shown[part], expected, rtol=1e-4, atol=2e-6 * size, err_msg=part)
    for side in "qk":
        order = sorted((part for part in lost if part[0] == side), key=lambda p: -abs(lost[p][0]))
        assert [part for part in shown if part[0] == side] == order
        if len(order) > 10:
            rest = sum(lost[part][0] for part in order[10:])
            assert others[side][0] == pytest.approx(rest, rel=1e-4, abs=2e-6 * size)
    farthest = max((measured - predicted for predicted, measured in lost.values()), key=abs)
    apart = float(page.locator(".apart").get_attribute("data-value"))
    assert apart == pytest.approx(farthest, rel=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_deleted_parts(page, traced, name):
    computed, (tensors, _), at = traced(name)
    layer, head, query, key = CELLS[name]
    last = "biases" if "biases" in computed.streams[0] else "token"
    for deleted in ([("q", "h0.2")], [("k", "token")], [("q", "m0"), ("k", "h0.1"), ("q", last)]):
        opened(page, f"{at}#{address(layer, head, query, key, deleted)}")
        _, scores = computed.of_cell(layer, head, query, key)
        both = [scores(deleted, frozen) for frozen in (True, False)]
        recorded = [
            tensors[f"blocks.{layer}.attention.{step}"][0, head, query, key]
            for step in ("scores", "weights")
        ]
        rows_of = (np.repeat(row[None], len(TEXT), 0) for row in both)
        weights = [softmax(computed.logits(head, row)[query])[key] for row in rows_of]
        lines = {"score": [row[key] for row in both], "weight": weights}
        for line, now in zip(lines, recorded, strict=True):
            size = max(1, np.abs(both).max())
            expected = [now, *lines[line]]
            np.testing.assert_allclose(outcome(page)[line], expected, rtol=1e-4, atol=5e-6 * size)
        assert not np.allclose(*lines["score"], rtol=1e-4)


def test_the_first_layer_reads_token_and_position_only(page, traced):
    for name, parts in {
        "gpt2": ["biases", "position", "token"],
        "modern": ["token"],
        "alibi": ["biases", "token"],
        "sinusoidal, QK-norm": ["biases", "position", "token"],
    }.items():
        opened(page, f"{traced(name)[2]}#{address(0, 1, 5, 2)}")
        sides = sorted(rows(page))
        assert sides == [f"{side}:{part}" for side in "kq" for part in parts]


def test_buttons_and_links(page, traced):
    at = traced("gpt2")[2]
    opened(page, f"{at}#{address(2, 3, 7, 4)}")
    assert np.isnan(outcome(page)["score"][1:]).all()
    assert "No part is deleted." in page.inner_text(".outcome")
    assert page.locator("tr[data-part='q:others'] th").inner_text() == "all others (3)"
    page.click("[data-side=q] button:has-text('list')")
    page.click("tr[data-part='q:h0.2'] button")
    settled(page)
    page.click("tr[data-part='k:token'] button")
    settled(page)
    assert "deleted=q:h0.2,k:token" in page.url
    told = "Without layer 0, head 2 (query's side) and token b (key's side)."
    assert told in page.inner_text(".outcome")
    assert page.get_attribute("tr[data-part='k:token'] button", "aria-pressed") == "true"
    page.click("tr[data-part='q:h0.2'] button")
    settled(page)
    assert page.url.endswith("deleted=k:token")
    page.click("button:has-text('restore all')")
    settled(page)
    assert "deleted" not in page.url
    link = page.locator("tr[data-part='k:h1.0'] a")
    assert link.inner_text() == "layer 1, head 0"
    opened(page, at + link.get_attribute("href"))
    assert "Layer 1 › Head 0 › weights › [b, b]" in page.inner_text(".crumbs")
    opened(page, f"{at}#{address(0, 3, 7, 4, [('q', 'h0.2'), ('q', '<b>'), ('z', 'token')])}")
    assert "No part is deleted." in page.inner_text(".outcome")


@pytest.mark.parametrize("edit", ["no rotary", "off", "no scale", "uniform"])
def test_a_score_of_an_edited_model(page, traced, edit, new_run, tmp_path):
    """The parts add up to the score of the edited model; the weight is not computed again."""
    run = new_run(CONFIGS["modern"])
    edits = [Edit(edit, "blocks.1.attention")]
    trace = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest(TEXT, tuple(edits)))
    (tmp_path / "page.html").write_text(export.page(*trace))
    at = (tmp_path / "page.html").as_uri()
    for layer in (1, 2):
        opened(page, f"{at}#{address(layer, 3, 6, 2, [('q', 'm0')])}")
        score = float(trace[0][f"blocks.{layer}.attention.scores"][0, 3, 6, 2])
        sums = page.locator("table.parts").evaluate_all("all => all.map(one => +one.dataset.sum)")
        np.testing.assert_allclose(sums, score, rtol=1e-5, atol=1e-5)
        assert ("weight" in outcome(page)) == (layer == 2)
        assert ("The weight is not computed again" in page.inner_text(".outcome")) == (layer == 1)


def test_where_it_is_not_offered_the_page_says_why(page, traced, new_run, tmp_path):
    computed, (tensors, manifest), _ = traced("gpt2")

    def text(tensors, manifest, state="layer=1&head=0&cell=3,1"):
        (tmp_path / "page.html").write_text(export.page(tensors, manifest))
        page.goto("about:blank")
        opened(page, f"{(tmp_path / 'page.html').as_uri()}#{state}")
        section = page.locator("section:has(> h3:text-is('Why this weight?'))")
        assert section.locator("table").count() == 0
        return section.locator(".note").inner_text()

    fewer = {name: x for name, x in tensors.items() if "W_output" not in name}
    assert "left out of this file" in text(fewer, manifest)
    assert "the rung multihead" in text(tensors, {**manifest, "rung": "multihead"})
    bert = replace(computed.config, norm=replace(computed.config.norm, placement="after"))
    run = new_run(bert)
    trace = ModelTracer(StoredModel.open(run.path)).trace(TraceRequest(TEXT))
    assert "normalizes the sum after every layer" in text(*trace)
    run = new_run(computed.config)
    tracer = WithLadder(ModelTracer(StoredModel.open(run.path)))
    trace = tracer.trace(TraceRequest(TEXT, (Edit("no output", "blocks.0.attention"),)))
    assert "An edit replaces the output" in text(*trace)
    assert "On the ladder" in text(*trace, "rung=causal&head=0&cell=3,1")
    with torch.no_grad(), headway.trace() as steps:
        headway.attend(*torch.randn(3, 1, 2, 5, 4), kernel="plain")
    own, description = trace_file.describe(steps)
    description |= {"kind": "trace", "title": "", "text": "", "tokens": [{"display": "x"}] * 5}
    assert "this trace has no parameters" in text(own, description, "layer=0&head=0&cell=3,1")


def test_the_trace_has_sinusoidal_positions(traced):
    _, (tensors, _), _ = traced("sinusoidal, QK-norm")
    expected = traced("sinusoidal, QK-norm")[0].streams[0]["position"]
    np.testing.assert_allclose(tensors["position"][0], expected, rtol=1e-5, atol=1e-8)
