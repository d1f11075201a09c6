"""Corpora of documents: tokenized once into shards, resumed, checked, and split by hash."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from headway.data import corpus as corpora
from headway.data import documents, encoding, files
from headway.data.corpus import Corpus
from headway.data.tokenizers import Tokenizer

KILLED = Path(__file__).parent / "preparing.py"
TEXTS = [f"{n} the cat sat on mat {n % 7}\n" * (1 + n % 5) for n in range(400)]
TOKENIZER = Tokenizer.byte_pairs("".join(TEXTS), 300, end=True).with_end()
END = TOKENIZER.end


def write(folder, texts=TEXTS, kind="jsonl"):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    match kind:
        case "jsonl":
            (folder / "a.jsonl").write_text(lines)
        case "jsonl.gz":
            (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        case "jsonl.zst":  # two frames
            half = lines.index("\n", len(lines) // 2) + 1
            (folder / "a.jsonl.zst").write_bytes(zstd(lines[:half]) + zstd(lines[half:]))
        case "parquet":
            parquet.write_table(pyarrow.table({"text": texts}), folder / "a.parquet")
        case "txt.gz":
            for number, text in enumerate(texts):
                (folder / f"{number:04}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def zstd(text):
    return pyarrow.compress(text.encode(), "zstd", asbytes=True)


def corpus_of(folder):
    return Corpus(files.hashed(str(folder), documents.files_of(str(folder))))


def stored(folder, tokenizer=TOKENIZER):
    return corpus_of(folder).tokens(tokenizer, tokenizer.end, lambda more, total: None)


def texts_of(tokens):
    """The documents of an array of tokens, sorted."""
    tokens = tokens[:]
    ends = np.flatnonzero(tokens == END)
    assert ends[-1] == len(tokens) - 1
    parts = np.split(tokens, ends + 1)[:-1]
    for part in parts:
        assert np.array_equal(part[:-1], TOKENIZER.encode(TOKENIZER.decode(part[:-1])))
    return sorted(TOKENIZER.decode(part[:-1]) for part in parts)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    """An empty cache, and many small shards and units."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "SHARD", 3000)
    monkeypatch.setattr(corpora, "LARGEST", 1000)
    monkeypatch.setattr(documents, "LARGEST", 1000)
    monkeypatch.setattr(corpora, "_cores", lambda: 1)


@pytest.fixture(scope="module")
def held_out():
    """The documents that the rule holds out: one in 100 by the SHA-256 of the text."""
    first = (int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) for text in TEXTS)
    return sorted(text for text, x in zip(TEXTS, first, strict=True) if x < 2**64 / 100)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt.gz"])
def test_every_format_gives_the_same_documents(tmp_path, kind, held_out):
    train, validation, which = stored(write(tmp_path / "c", kind=kind)).split(4)
    assert which == "one document in 100"
    assert texts_of(validation) == held_out
    assert len(held_out) > 1
    assert texts_of(train) == sorted(set(TEXTS) - set(held_out))


def test_order_and_processes_do_not_change_what_is_held_out(tmp_path, monkeypatch, held_out):
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    assert texts_of(stored(write(tmp_path / "c", shuffled)).split(4)[1]) == held_out
    one = stored(write(tmp_path / "d"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(corpora, "_cores", lambda: 3)
    three = stored(tmp_path / "d")
    assert one.folder != three.folder
    assert [s["sha256"] for s in one.shards] == [s["sha256"] for s in three.shards]
    assert len(one.shards) > 3


def test_few_documents_are_held_out_more_often_and_of_one_the_end(tmp_path):
    _, validation, which = stored(write(tmp_path / "few", TEXTS[:12])).split(4)
    assert which != "one document in 100"
    assert len(validation) > 4
    text = TEXTS[4] * 4
    train, validation, which = stored(write(tmp_path / "one", [text])).split(4)
    assert which == "the last tenth"
    assert texts_of(np.concatenate([train[:], validation[:]])) == [text]
    with pytest.raises(ValueError, match="too few for a context of 500"):
        stored(tmp_path / "few").split(500)


def test_a_long_document_is_cut_without_a_change_of_its_tokens(tmp_path):
    text = "Some words, 12 numbers\r\n\r\nand lines\n" * 100
    folder = write(tmp_path / "c", [TEXTS[0], text, TEXTS[1]])
    parts = list(documents.parts(folder / "a.jsonl"))
    assert len(parts) > 4
    assert max(len(part.text) for part in parts) <= 1000
    train, validation, _ = stored(folder).split(4)
    encoded = [TOKENIZER.encode(whole) for whole in (TEXTS[0], text, TEXTS[1])]
    assert len(train) + len(validation) == 3 + sum(map(len, encoded))
    encoded = [TOKENIZER.encode(part.text) for part in parts[1:-1]]
    assert np.array_equal(np.concatenate(encoded), TOKENIZER.encode(text))


def test_it_is_made_once_and_read_from_the_cache(tmp_path, monkeypatch):
    folder = write(tmp_path / "c")
    before = stored(folder)
    for name in ("parts", "sha256"):
        monkeypatch.setattr(*(corpora, name) if name == "parts" else (corpora.cache, name), None)
    assert stored(folder).shards == before.shards


def test_a_changed_file_is_noticed(tmp_path):
    folder = write(tmp_path / "c")
    before = corpus_of(folder).sha256
    assert corpus_of(folder).sha256 == before
    file = folder / "a.jsonl"
    file.write_bytes(file.read_bytes().replace(b"0 the", b"0 teh", 1))  # of the same size
    assert corpus_of(folder).sha256 != before


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    folder = write(tmp_path / "c")
    corpus = corpus_of(folder)
    (folder / "a.jsonl").touch()
    with pytest.raises(ValueError, match=r"a\.jsonl has changed while it was read"):
        corpus.tokens(TOKENIZER, END, lambda more, total: None)
    stored(folder)


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_damaged_shard_is_named_and_written_again(tmp_path, damage, recwarn):
    folder = write(tmp_path / "c")
    before = stored(folder)
    file = before.folder / before.shards[1]["file"]
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-2] if damage == "short" else b"\0\0" + content[2:])
    calls = []
    with pytest.MonkeyPatch.context() as patched:
        encoded = encoding.encoded
        patched.setattr(encoding, "encoded", lambda *a: calls.append(a) or encoded(*a))
        after = stored(folder)
    assert "000001.bin is damaged or missing: it is written again" in str(recwarn[0].message)
    assert file.read_bytes() == content
    assert len(calls) == len(before.shards[1]["units"])
    assert [s["sha256"] for s in after.shards] == [s["sha256"] for s in before.shards]
    stored(folder)
    assert len(recwarn) == 1


def test_a_copied_cache_is_verified_once(tmp_path, monkeypatch):
    folder = write(tmp_path / "c")
    before = stored(folder)
    for shard in before.shards:
        os.utime(before.folder / shard["file"], (1, 1))
    stored(folder)
    monkeypatch.setattr(corpora.cache, "sha256", None)
    stored(folder)


def test_killed_at_any_moment_it_continues(tmp_path):
    folder = write(tmp_path / "c", TEXTS * 3)
    TOKENIZER.save(tmp_path / "tokenizer.json")
    moments = random.Random(1)
    expected = stored(folder)
    kept = []
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "killed")}
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, KILLED, folder, tmp_path / "tokenizer.json"],
            stdout=subprocess.PIPE,
            env=environment,
        )
        process.stdout.readline()  # it starts to tokenize
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        journals = list((tmp_path / "killed").rglob("shards.jsonl"))
        kept.append(len(journals[0].read_text().split("\n")[:-1]) if journals else 0)
    assert kept == sorted(kept)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "killed")
    result = stored(folder)
    assert [s["sha256"] for s in result.shards] == [s["sha256"] for s in expected.shards]
    assert [s["units"] for s in result.shards] == [s["units"] for s in expected.shards]
    assert sorted(p.name for p in result.folder.iterdir() if p.suffix == ".bin") == [
        shard["file"] for shard in expected.shards
    ]


def test_a_full_disk_keeps_what_is_done(tmp_path, monkeypatch):
    folder = write(tmp_path / "c")
    written, fsync = [], os.fsync

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        stored(folder)
    assert error.value.filename.endswith("000002.bin")
    (journal,) = tmp_path.rglob("shards.jsonl")
    assert len(journal.read_text().splitlines()) == 2
    result = stored(folder)
    assert len(written) == 3 + len(result.shards) - 2
    assert not list(result.folder.glob(".*bin"))


def test_two_processes_do_not_write_the_same_shards(tmp_path):
    folder = write(tmp_path / "c")
    corpus = corpus_of(folder)

    def again(more, total):
        with pytest.raises(ValueError, match="another process uses"):
            stored(folder)

    assert len(corpus.tokens(TOKENIZER, END, again).split(4)[0])


def test_a_killed_worker_is_reported_and_its_work_done_later(tmp_path, monkeypatch):
    folder = write(tmp_path / "c")
    monkeypatch.setattr(corpora, "_cores", lambda: 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        with pytest.raises(ChildProcessError, match="has ended with status 1"):
            stored(folder)
    stored(folder)


BAD = [
    ("a.jsonl", b'{"text": "a"}\n{"txet": "b"}\n', r"a\.jsonl, line 2 has no text.*got nothing"),
    ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl, line 1 has no text.*got int"),
    ("a.jsonl", b'["text"]\n', r"a\.jsonl, line 1 has no text"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl, line 3 is not valid JSON"),
    ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1 is not valid JSON"),
    ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1 is not UTF-8"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1 is invalid Unicode"),
    ("a.jsonl", b'{"text": ""}\n', r"0 tokens, too few"),
    ("a.txt.gz", gzip.compress(b"a\xff", mtime=0), r"a\.txt\.gz is not UTF-8"),
    ("a.txt.gz", b"no gzip", r"a\.txt\.gz is damaged.*download or write it again"),
    ("a.txt.gz", gzip.compress(b"a text" * 999, mtime=0)[:-9], r"a\.txt\.gz is damaged"),
    ("a.txt.gz", gzip.compress(b"abc" * 999, mtime=0)[:20] + b"\xff" * 9, r"a\.txt\.gz is damaged"),
    ("a.txt.zst", b"no zstd", r"a\.txt\.zst is damaged"),
    ("a.txt.zst", zstd(os.urandom(999).hex())[:-9], r"zst is damaged"),
    ("a.parquet", b"PAR1 no parquet PAR1", r"a\.parquet is damaged"),
    ("a.parquet", b"", r"a\.parquet is damaged"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, name, content, message):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        stored(tmp_path / "c").split(4)
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_a_parquet_without_text_is_named(tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": ["a"]}), file)
    with pytest.raises(ValueError, match=r"no column 'text' \(it has content\)"):
        list(documents.parts(file))
    parquet.write_table(pyarrow.table({"text": ["a", None]}), file)
    with pytest.raises(ValueError, match="row 2 has no text"):
        list(documents.parts(file))


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    from headway import extras

    folder = write(tmp_path / "c", kind="parquet")
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"pyarrow: pip install 'headway\[data\]'"):
        list(documents.parts(folder / "a.parquet"))


def test_which_sources_are_corpora(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a" * 50)
    (tmp_path / "b.json").write_text("{}")
    assert documents.files_of(str(tmp_path)) == []
    assert documents.files_of("manual") == []
    monkeypatch.setattr(documents, "PLAIN", 51)
    assert [file.name for file in documents.files_of(str(tmp_path))] == ["a.txt", "b.json"]
    monkeypatch.undo()
    (tmp_path / "c.jsonl.gz").touch()
    (tmp_path / "d.tar.gz").touch()
    names = [file.name for file in documents.files_of(str(tmp_path))]
    assert names == ["a.txt", "b.json", "c.jsonl.gz"]


def test_the_sample_is_bounded_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "SAMPLE", 500)
    corpus = corpus_of(write(tmp_path / "c", kind="txt.gz"))
    sample = corpus.sample()
    assert 300 < len(sample) < 600
    assert sample == corpus.sample()
    assert sample.startswith(TEXTS[0][:7])
    assert TEXTS[-1][:7] in sample
    assert corpus.characters() == "".join(sorted(set("".join(TEXTS))))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """In a process of its own each: a corpus of 8 MB, and one of 64 MB."""
    TOKENIZER.save(tmp_path / "tokenizer.json")
    peaks = []
    for megabytes in (8, 64):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        line = json.dumps({"text": "the cat sat on the mat " * 200}) + "\n"
        (folder / "a.jsonl").write_text(line * (megabytes * 10**6 // len(line)))
        command = [sys.executable, KILLED, folder, tmp_path / "tokenizer.json", "memory"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(int(output.split()[-1]))
    few, many = peaks
    assert many < few + 10e6
    assert many < 150e6
