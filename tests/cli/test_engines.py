"""The verbs with --engine: one run directory, two engines."""

import json
import re
import sys

import numpy as np
import pytest

from command import headway
from headway.engines import engine_named
from headway.explore import trace_file

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("engines")

SMALL = "--tokenizer char --context 16 --width 16 --layers 1 --heads 2 --batch 4 --save-every 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    random = np.random.default_rng(0)
    text = "".join(random.choice(["the cat ", "a dog ", "sees ", "it.\n"], 300))
    (place / "text.txt").write_text(text, encoding="utf-8")
    headway(
        place, "train", "text.txt", "--engine", "jax", "--name", "j", "--steps", "4", *SMALL.split()
    )
    return place


def test_both_engines_write_the_same_from_one_run(folder):
    one, other = (
        headway(folder, "generate", "j", "the ", "a", "--tokens", "20", "--engine", name)
        for name in ("jax", "torch")
    )
    assert one.stdout == other.stdout
    assert len(one.stdout) > 40


def test_both_engines_make_the_same_trace(folder):
    for name in ("jax", "torch"):
        headway(folder, "trace", "j", "the cat", "--engine", name, "-o", f"{name}.safetensors")
    (one, about), (other, told) = (
        trace_file.load(folder / f"{name}.safetensors") for name in ("jax", "torch")
    )
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert np.allclose(one[name], other[name], rtol=0, atol=1e-5), name
    assert about["steps"] == told["steps"]
    assert about["attentions"] == told["attentions"]


def test_the_page_of_a_run_in_jax(folder):
    headway(folder, "explore", "j", "the", "--engine", "jax", "--html", "j.html")
    assert (folder / "j.html").stat().st_size > 100_000


def test_the_doctor_looks_at_a_run_in_jax(folder):
    message = headway(folder, "check", "j", "--engine", "jax", "--only", "future,cache", "--json")
    (result,) = json.loads(message.stdout)
    assert result["engine"] == "jax"
    assert {item["check"]: item["verdict"] for item in result["findings"]} == {
        "future": "pass",
        "cache": "pass",
    }


def test_a_run_goes_on_in_its_engine_unless_told(folder):
    words = ["train", "text.txt", "--name", "k", "--steps", "2", *SMALL.split()]
    headway(folder, *words, "--engine", "jax")
    log = folder / "runs" / "k" / "log.jsonl"
    assert len(log.read_text().splitlines()) == 2
    message = headway(folder, "train", "--resume", "k", "--steps", "3")
    assert "float32, in JAX, from step 2" in message.stdout
    assert "the learning rate schedule ended at step 2 and now ends at step 3" in message.stderr
    message = headway(folder, "train", "--resume", "k", "--engine", "torch", "--steps", "4")
    assert re.search("(float32|bfloat16), from step 3", message.stdout)
    assert "engine was jax" in message.stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "text.txt", "--engine", "jax", "--compile"], "JAX always compiles"),
        (["train", "text.txt", "--engine", "jax", "--device", "mps"], "JAX has no mps here"),
        (["explore", "--ladder", "--engine", "jax"], "the ladder runs on NumPy"),
        (["check", "j", "--engine", "numpy"], "must be torch or jax"),
    ],
    ids=lambda given: given if isinstance(given, str) else None,
)
def test_what_cannot_be_is_told_in_a_line(folder, words, complaint):
    assert complaint in headway(folder, *words, rc=1).stderr


def test_without_jax_it_says_what_to_install(folder, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("headway.jax")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optax", None)
    message = headway(folder, "generate", "j", "--engine", "jax", rc=1).stderr
    assert message == "headway: the JAX engine needs optax: pip install 'headway[jax]'\n"


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match=r"engine must be torch or jax \(got 'tpu'\)"):
        engine_named("tpu")
