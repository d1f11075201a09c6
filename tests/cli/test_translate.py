"""`headway translate`: from pairs to a run, to translations and scores; and what is refused."""

import json
import re
import shutil
from unittest.mock import patch

import pytest

import command
from headway.data import grammar
from headway.data.tokenizers import Tokenizer
from headway.training import translation

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("translate")

SIZES = {"steps": 30, "batch": 400, "width": 16, "context": 60, "vocabulary": 400}
SMALL = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]


def headway(folder, *words, verb="translate", **how):
    return command.headway(folder, *([verb] if verb else []), *words, **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("translate")
    some = [*grammar.examples(400, [0], seed=9)]
    rows = [f"{pair.english}\t{pair.german}\n" for pair in some]
    (place / "pairs.tsv").write_text("".join(rows), encoding="utf-8")
    (place / "few.tsv").write_text("the cat\tdie Katze\n" * 22, encoding="utf-8")
    headway(place, "train", "--pairs", "pairs.tsv", "--model", "bahdanau", "--name", "b", *SMALL)
    return place


def test_a_run_translates_and_shows_where_it_looked(folder):
    result = headway(folder, "b", "The dog sees the cat.", "--alignment", "--beams", "2")
    lines = result.stdout.splitlines()
    assert lines[0]
    for line in lines[1:]:
        assert re.fullmatch(r" +\S+ │[ ░▒▓█]{12}│ \S+ \d+%", line), line
    piped = headway(folder, "b", asked="The dog sees the cat.\nThe cat sleeps.\n")
    assert len(piped.stdout.splitlines()) == 2


def test_eval_tells_scores_by_length_and_writes_them(folder):
    message = headway(folder, "eval", "b", "--beams", "1", "-o", "scores.json").stdout
    assert "BLEU: nrefs:1" in message
    result = json.loads((folder / "scores.json").read_text())
    count = result["scores"]["all"]["sentences"]
    assert count == len(result["answers"]) == pytest.approx(20, abs=3)
    groups = [pair["sentences"] for name, pair in result["scores"].items() if name != "all"]
    assert sum(groups) == count
    assert {"exact", "bleu", "chrf", "tokens", "aer"} <= result["scores"]["all"].keys()


def test_a_run_that_was_stopped_goes_on(folder):
    """Thirty steps at once, or twenty and the rest: the same log, and the same weights."""
    words = ["train", "--pairs", "pairs.tsv", "--model", "luong", *SMALL]
    with patch.object(translation, "FILE", {**translation.FILE, "save_every": 10}):
        headway(folder, *words, "--name", "complete")
    complete, cut = folder / "runs" / "complete", folder / "runs" / "cut"
    shutil.copytree(complete, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000030")
    headway(folder, "train", "--resume", "cut")
    for name in ("model", "optimizer"):
        file = f"checkpoints/step-000030/{name}.safetensors"
        assert (complete / file).read_bytes() == (cut / file).read_bytes()
    logs = [(path / "log.jsonl").read_text().splitlines() for path in (complete, cut)]
    assert len(logs[0]) == len(logs[1]) == 30
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    message = headway(folder, "train", "--resume", "cut", "--width", "18", rc=1).stderr
    assert "width cannot change" in message
    Tokenizer.utf8_bytes().save(cut / "tokenizer.json")
    message = headway(folder, "train", "--resume", "cut", "--steps", "40", rc=1).stderr
    assert "tokenizer_sha256 has changed" in message


def test_one_that_fills_in_needs_a_gap(folder):
    words = ["train", "--pairs", "pairs.tsv", "--model", "encoder", "--layers", "1", *SMALL]
    headway(folder, *words, "--name", "e", "--heads", "2")
    assert "[" in headway(folder, "e", "The _ sleeps.").stdout
    assert 'write "_" for each masked word' in headway(folder, "e", "The dog.", rc=1).stderr
    assert (
        "does not translate: see its validation loss" in headway(folder, "eval", "e", rc=1).stderr
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "a"], "run 'nowhere' not found in runs; available runs: b"),
        (["b", " "], "empty sentence"),
        (["b"], "nothing to translate"),
        (["b", "cat " * 80], "at most 60"),
        (["b", "The dog.", "--beams", "0"], "beams must be >= 1"),
        (["train", "--name", "b"], "run runs/b already exists"),
        (["train", "--pairs", "nothing.tsv"], "file 'nothing.tsv' not found: --pairs takes"),
        (["train", "--pairs", "a", "b", "c"], "one or two files"),
        (["train", "--pairs", "few.tsv"], "too few of the 22 pairs remain"),
        (["train", "--pairs", "pairs.tsv", "--depth", "2"], "excludes --depth"),
        (["train", "--depth", "11"], "from 0 to 9"),
        (["train", "--pairs", "pairs.tsv", "--width", "15", "--model", "rnn"], "must be even"),
        (["train", "--pairs", "pairs.tsv", "--context", "2"], "a --context larger than 2"),
        (["train", "--resume", "b", "--name", "c"], "remove --name, --pairs and --depth"),
        (["race", "--quick", "--full"], "exclude each other"),
        (["train", "--name", "eval"], "'eval': it is a command"),
        (["train", "--pairs", "a + b", "c"], "cannot contain ' + '"),
        (["train", "--cell", "lstm"], "transformer does not support cell"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(folder, words, message):
    before = sorted(folder.rglob("*"))
    result = headway(folder, *words, rc=1)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_words_never_seen_and_another_language_are_told_on_the_error_stream(folder):
    result = headway(folder, "b", "The quokka sees the cat.")
    assert result.stdout
    assert "not in the training data, and likely to be mistranslated: quokka" in result.stderr
    result = headway(folder, "b", "Die Katze sieht den Hund.")
    assert "the language that the model writes" in result.stderr
    assert "training" not in headway(folder, "b", "The dog sees the cat.").stderr


def test_pairs_that_are_too_long_are_counted(folder):
    long = " ".join(["and the dog"] * 30)
    text = (folder / "pairs.tsv").read_text() + f"{long}.\t{long}!\n"
    (folder / "long.tsv").write_text(text)
    result = headway(folder, "train", "--pairs", "long.tsv", *SMALL, "--heads", "2")
    assert "1 pairs are longer than 60 tokens and are left out" in result.stderr


@pytest.mark.parametrize("verb", ["generate", "trace"])
def test_verbs_of_texts_say_that_it_translates(folder, verb):
    assert "runs/b is a translation run" in headway(folder, "b", "The", rc=1, verb=verb).stderr


@pytest.mark.parametrize("words", [["runs"], ["info", "b"]], ids=str)
def test_runs_and_info_know_translations(folder, words):
    assert "bahdanau" in headway(folder, *words, verb="").stdout
