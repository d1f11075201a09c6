"""A run on a corpus of documents: trained, resumed, generated from; documents that are masked."""

import json

import numpy as np
import pytest

from command import headway
from headway.attention.arrays import as_numpy
from headway.data import batches, corpus, documents
from headway.engines import engine_named
from headway.training import recipes, session
from headway.training.runs import find

TINY = ["--context", "8", "--width", "16", "--layers", "1", "--heads", "2", "--batch", "4"]
TINY += ["--vocabulary", "300", "--precision", "float32", "--optimizer", "adamw"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": f"{n} is {'odd' if n % 2 else 'even'}.\n"}) for n in range(3000)]
    (folder / "texts").mkdir()
    (folder / "texts" / "a.jsonl").write_text("\n".join(lines))
    return folder


def test_a_resumed_run_reads_its_tokens_from_the_cache(folder, monkeypatch):
    options = ["--steps", "2", "--name", "part", "--separate-documents"]
    output = headway(folder, "train", "texts", *TINY, *options).stdout
    assert "one document in 100" in output
    assert "headway generate part" in output
    assert "endoftext" not in output.partition("headway generate")[2]
    with monkeypatch.context() as patched:
        for module in (corpus, documents):
            patched.setattr(module, "parts", None)
        headway(folder, "train", "--resume", "part", "--steps", "4")
    config = find("part", str(folder / "runs")).config
    assert config.end_token == 299
    assert config.separator == 299


def test_a_changed_corpus_is_not_resumed(folder, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes((folder / "texts" / "a.jsonl").read_bytes())
    headway(tmp_path, "train", "a.jsonl", *TINY, "--steps", "2", "--name", "one")
    file.write_text(file.read_text().replace("7 is odd", "7 is add"))
    done = headway(tmp_path, "train", "--resume", "one", "--steps", "4", rc=1)
    assert "text_sha256 has changed" in done.stderr


def test_generated_text_ends_with_the_document(folder):
    headway(folder, "train", "texts", *TINY, "--lr", "0.03", "--steps", "150", "--name", "ends")
    texts = headway(folder, "generate", "ends", "--tokens", "60", "--temperature", "0.2").stdout
    assert "<|endoftext|>" not in texts
    assert len(texts) < 60  # a document has 12 characters


def test_one_text_has_no_documents(folder):
    (folder / "one.txt").write_text("one text " * 99)
    done = headway(folder, "train", "one.txt", *TINY, "--separate-documents", rc=1)
    assert "separate_documents needs a text of several documents, but one.txt" in done.stderr


def test_a_tokenizer_without_an_end_is_refused(folder):
    from headway.data.tokenizers import Tokenizer

    Tokenizer.utf8_bytes().save(folder / "bytes.json")
    done = headway(folder, "train", "texts", "--tokenizer", "bytes.json", rc=1)
    assert "the tokenizer has no token that ends a document" in done.stderr


@pytest.mark.parametrize(("engine", "micro_batch"), [("torch", None), ("torch", 1), ("jax", 1)])
def test_other_documents_do_not_change_the_loss(folder, engine, micro_batch, monkeypatch):
    given = {"text": str(folder / "texts"), "context": 12, "width": 16, "layers": 1, "heads": 2}
    given |= {"vocabulary": 300, "separate_documents": True, "batch": 2, "steps": 1}
    given |= {"micro_batch": micro_batch, "precision": "float32", "compile": False}
    given |= {"optimizer": "adamw", "dropout": 0.0}
    config = recipes.plan(recipes.override(recipes.read("small"), given)).config
    end = config.end_token
    rows = np.random.default_rng(0).integers(0, end, (2, 13))
    rows[0, 4], rows[1, 7] = end, end
    trainer = engine_named(engine).trainer(config, (rows.ravel(), rows.ravel()))
    losses = losses_of(engine, trainer.model, rows, end)
    changed = rows.copy()
    changed[0, :4] = (rows[0, :4] + 1) % end  # the first document of the first row
    others = losses_of(engine, trainer.model, changed, end)
    assert np.array_equal(losses[0, 5:], others[0, 5:])
    assert not np.array_equal(losses[0, :4], others[0, :4])
    # The windows of the step are the two rows.
    monkeypatch.setattr(batches, "batch", lambda tokens, **_: (rows[:, :-1], rows[:, 1:]))
    assert trainer.start().result().loss == pytest.approx(losses.mean(), rel=1e-5)


def losses_of(engine, model, rows, end):
    """The loss of each token, with the mask of the documents."""
    from headway.attention.masks import ended_by
    from headway.attention.spec import Spec

    if engine == "torch":
        import torch

        inputs = torch.from_numpy(rows[:, :-1])
        with torch.no_grad():
            logits = model.eval()(inputs, ended_by(end, inputs, Spec()))
    else:
        import jax.numpy as jnp

        from headway.jax import gpt

        inputs = jnp.asarray(rows[:, :-1])
        spec = ended_by(end, inputs, Spec())
        logits = gpt.forward(model.params, inputs, model.config, model.attention, spec)
    logits = as_numpy(logits).astype(np.float64)
    log_sums = np.log(np.exp(logits).sum(-1))
    return log_sums - np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]


def test_the_plan_needs_no_process_if_the_tokens_are_there(folder):
    plan = recipes.plan(
        recipes.override(
            recipes.read("small"), {"text": str(folder / "texts"), "vocabulary": 300, "context": 8}
        )
    )
    engine = engine_named("torch")
    session.begin(folder / "runs" / "again", plan, engine)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "parts", None)
        session.begin(folder / "runs" / "again-2", plan, engine)
