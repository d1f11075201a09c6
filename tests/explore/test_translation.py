"""The page on a translation: whose words stand where, and Bahdanau's score written out."""

from functools import cache

import numpy as np
import pytest

from headway.data import grammar
from headway.data.pairs import FIRST, encoded
from headway.data.tokenizers import Tokenizer
from headway.explore.export import page as exported_page
from headway.explore.tracers import TraceRequest, TranslationTracer
from headway.models.seq2seq import Seq2SeqConfig
from headway.torch import weights
from headway.torch.seq2seq import Seq2Seq
from headway.torch.translate import alignment
from headway.training import checkpoints
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig
from pages import opened

pytestmark = pytest.mark.xdist_group("browser")
SENTENCE = "The dog sees the old cat."


@pytest.fixture(scope="module")
def tracer_of(tmp_path_factory):
    """An untrained translator of a kind, in a run directory."""
    folder = tmp_path_factory.mktemp("translators")
    text = "\n".join(f"{e.english}\n{e.german}" for e in grammar.examples(200, [0], seed=1))
    tokenizer = Tokenizer.byte_pairs(text, 400)

    @cache
    def make(kind):
        sizes = {"layers": 2, "heads": 2} if kind == "transformer" else {}
        model = Seq2SeqConfig(kind, tokenizer.vocabulary + FIRST, context=20, width=16, **sizes)
        config = RunConfig(
            *("translation", "grammar", "1", "bpe", tokenizer.fingerprint, None),
            model,
            TrainingConfig(steps=1),
        )
        run = Run.create(folder / kind, config, tokenizer)
        arrays = weights.to_arrays(Seq2Seq(model, seed=3))
        checkpoints.save(run.checkpoints, 0, {"model": arrays}, {})
        return TranslationTracer(run)

    return make


def shown(page, tmp_path, tensors, manifest, address):
    file = tmp_path / "page.html"
    file.write_text(exported_page(tensors, manifest, address), encoding="utf-8")
    opened(page, f"file://{file}{address}")


@pytest.mark.parametrize("kind", ["bahdanau", "luong", "transformer"])
def test_the_weights_are_the_alignment_and_the_words_are_both_sentences(tracer_of, kind):
    tracer = tracer_of(kind)
    tensors, manifest = tracer.trace(TraceRequest(SENTENCE))
    source = encoded(SENTENCE, tracer.tokenizer)
    target = [token["id"] + FIRST for token in manifest["inputs"][1:]]
    assert [token["id"] + FIRST for token in manifest["key_tokens"][:-1]] == source[:-1].tolist()
    assert manifest["tokens"][:-1] == manifest["inputs"][1:]
    layer = "decoder.blocks.1.cross_attention" if kind == "transformer" else "decoder.attention"
    weights = tensors[f"{layer}.weights"]
    assert weights.shape[-2:] == (len(manifest["tokens"]), len(manifest["key_tokens"]))
    np.testing.assert_allclose(
        weights[0].mean(0), alignment(tracer.model, source, target), atol=1e-6
    )
    assert manifest["kind"] == "translation"
    with pytest.raises(ValueError, match="the sentence is empty"):
        tracer.trace(TraceRequest(""))


@pytest.mark.parametrize("kind", ["rnn", "encoder"])
def test_what_does_not_look_at_the_source_is_refused(tracer_of, kind):
    with pytest.raises(ValueError, match="which has no attention to the source"):
        tracer_of(kind)


def test_the_additive_score_is_written_out(page, tracer_of, tmp_path):
    tracer = tracer_of("bahdanau")
    tensors, manifest = tracer.trace(TraceRequest(SENTENCE))
    shown(page, tmp_path, tensors, manifest, "#layer=0&head=0&step=scores&cell=1,2")
    written = page.locator("[data-sum]").first
    total = float(written.get_attribute("data-sum"))
    layer, part = "decoder.attention", tracer.model.decoder.attention
    query, key = (tensors[f"{layer}.{role}"][0, 0] for role in ("queries", "keys"))
    score = float(np.tanh(query[1] + key[2]) @ part.v.detach().numpy())
    assert total == pytest.approx(score, abs=1e-6)
    assert total == pytest.approx(float(tensors[f"{layer}.scores"][0, 0, 1, 2]), abs=1e-6)
    assert "v · tanh(query + key)" in page.inner_text("main")
    text = page.inner_text("main")
    assert manifest["key_tokens"][2]["display"] in text


def test_each_attention_of_a_transformer_has_its_default_text(page, tracer_of, tmp_path):
    tensors, manifest = tracer_of("transformer").trace(TraceRequest(SENTENCE))
    shown(page, tmp_path, tensors, manifest, "")
    titles = page.locator(".band h3").all_inner_texts()
    assert titles == [
        *("encoder 0 → itself", "encoder 1 → itself"),
        *("decoder 0 → itself", "decoder 0 → source", "decoder 1 → itself", "decoder 1 → source"),
    ]
    words = {
        name: [token["display"] for token in manifest[name]]
        for name in ("tokens", "inputs", "key_tokens")
    }
    sides = {0: ("key_tokens", "key_tokens"), 2: ("inputs", "inputs"), 3: ("tokens", "key_tokens")}
    for layer, (rows, columns) in sides.items():
        shown(page, tmp_path, tensors, manifest, f"#layer={layer}&head=0&cell=0,1")
        pickers = page.locator(".controls select")
        asked, keys = (
            [
                option.split(" ", 1)[1]
                for option in pickers.nth(n).locator("option").all_inner_texts()
            ]
            for n in (0, 1)
        )
        assert (asked, keys) == (words[rows], words[columns])
