"""Tests of the choice of a kernel: by measured times, or by a fixed rule without them."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import headway
from headway.attention.dispatch import fastest
from headway.attention.kernels import tuning
from headway.attention.kernels.table import KERNELS
from headway.attention.kernels.tuning import Kind, Size
from headway.attention.masks import causal, documents
from headway.attention.options import spec_from
from headway.attention.spec import DEFAULT

CAUSAL = Kind("torch", "cpu", torch.get_num_threads(), "float32", False, "causal", False, False)


DOCUMENTS = causal & documents(torch.zeros(2, 1024, dtype=torch.int64))


def call(heads=4, tokens=16, features=8, **options):
    x = torch.randn(1, heads, tokens, features)
    return x, x, x, spec_from({"causal": True, **options})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Use an empty cache folder for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuning.forget()
    yield
    monkeypatch.undo()
    tuning.forget()


@pytest.fixture
def tuned():
    """A function that saves a table as the table of this machine."""

    def do(table):
        tuning.save(table, tuning.path())
        tuning.forget()

    return do


SMALL, LARGE = Size(4, 16, 16, 8), Size(4, 1024, 1024, 8)
TABLE = {
    CAUSAL: {
        SMALL: {"plain": 1e-5, "sdpa": 2e-5, "tiled": 3e-5},
        LARGE: {"plain": 9e-2, "sdpa": 3e-2, "tiled": 1e-2},
    }
}


def test_the_fastest_measured_one_runs(tuned):
    tuned(TABLE)
    x, y = torch.randn(1, 4, 16, 8), torch.randn(1, 4, 1024, 8)
    small, large = (headway.explain(x, x, x, causal=True) for x in (x, y))
    assert (small.chosen, large.chosen) == ("plain", "tiled")
    assert "as measured on this machine" in str(small)
    plain = headway.attend(x, x, x, causal=True, kernel="plain")
    assert torch.equal(headway.attend(x, x, x, causal=True), plain)
    tiled = headway.attend(y, y, y, causal=True, kernel="tiled")
    assert torch.equal(headway.attend(y, y, y, causal=True), tiled)


@pytest.mark.parametrize(("tokens", "first"), [(20, "plain"), (700, "tiled")])
def test_the_nearer_measured_shape_counts_more(tokens, first):
    assert tuning.measured(TABLE, *tuning.kind_and_size(*call(tokens=tokens)))[0] == first


def test_only_the_ratios_of_one_shape_count():
    """Times of a long text are a thousand times as large, but must not count more."""
    table = {CAUSAL: {SMALL: {"a": 1.0, "b": 3.0}, LARGE: {"a": 1000.0, "b": 500.0}}}
    between = call(tokens=128)  # as near to one as to the other
    assert tuning.measured(table, *tuning.kind_and_size(*between)) == ("a", "b", "plain")


def test_a_kernel_must_be_measured_in_all_near_shapes():
    table = {CAUSAL: {SMALL: {"sdpa": 2.0, "einsum": 1.0}, LARGE: {"sdpa": 3.0}}}
    assert tuning.measured(table, *tuning.kind_and_size(*call())) == ("sdpa", "plain")


def test_the_fastest_that_does_not_refuse(tuned):
    row = {"a kernel of tomorrow": 1.0, "sdpa": 2.0}
    kind = CAUSAL._replace(softcap=True)
    tuned({CAUSAL: {SMALL: row}, kind: {SMALL: row}})
    x = torch.randn(1, 4, 16, 8)
    explanation = headway.explain(x, x, x, causal=True, softcap=2.0)
    assert explanation.chosen == "plain"
    assert explanation.why.startswith("chosen by a fixed rule")  # it was not measured
    assert headway.attend(x, x, x, causal=True, softcap=2.0).isfinite().all()


@pytest.mark.parametrize(
    ("change", "options", "requires_grad"),
    [
        ({}, {}, False),
        ({"backward": True}, {}, True),
        ({"dropout": True}, {"dropout": 0.1, "seed": 1}, False),
        ({"softcap": True}, {"softcap": 2.0}, False),
        ({"mask": "none"}, {"causal": False}, False),
        ({"mask": "band"}, {"window": 3}, False),
        ({"mask": "other"}, {"mask": torch.ones(16, 16, dtype=torch.bool)}, False),
        ({"mask": "other"}, {"bias": torch.zeros(16, 16)}, False),
    ],
)
def test_kinds(change, options, requires_grad):
    arguments = call(**options)
    arguments[1].requires_grad_(requires_grad)
    assert tuning.kind_and_size(*arguments) == (CAUSAL._replace(**change), SMALL)
    with torch.no_grad():
        assert not tuning.kind_and_size(*arguments)[0].backward


def test_a_kind_without_times_uses_the_fixed_rule(tuned):
    tuned(TABLE)
    assert tuning.ranking(*call(dropout=0.1, seed=1)) == tuning.RULES["short"]
    assert tuning.ranking(*call(tokens=300, dropout=0.1, seed=1)) == tuning.RULES["long"]
    with torch.no_grad():
        assert tuning.ranking(*call()) == ("plain", "sdpa", "tiled", "plain")


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize(
    ("tokens", "options", "kernel"),
    [
        (1024, {}, "sdpa"),
        (1024, {"causal": True}, "sdpa"),
        (1024, {"causal": True, "dropout": 0.1, "seed": 1}, "triton"),
        (1024, {"causal": True, "softcap": 30.0}, "triton"),
        (1024, {"window": 511}, "triton"),
        (1024, {"window": 512}, "sdpa"),
        (1024, {"causal": True, "bias": torch.zeros(1, 1, 1024, 1024)}, "sdpa"),
        (1024, {"mask": DOCUMENTS}, "flex"),
        (512, {"mask": DOCUMENTS}, "sdpa"),  # the matrix of the mask is small
        (1024, {"mask": DOCUMENTS, "softcap": 30.0}, "flex"),
        (1024, {"mask": DOCUMENTS, "dropout": 0.1, "seed": 1}, "tiled"),
        (1024, {"mask": torch.ones(1024, 1024, dtype=torch.bool)}, "sdpa"),
    ],
)
def test_the_rule_on_cuda(tokens, options, kernel, compiling, monkeypatch):
    """PyTorch pretends to have CUDA tensors, which suffices to choose a kernel."""
    for module in ("tuning", "flex"):
        name = f"headway.attention.kernels.{module}.compiles_for_torch"
        monkeypatch.setattr(name, lambda: compiling)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 3, tokens, 64, device="cuda", dtype=torch.bfloat16)
        assert fastest(x, x, x, spec_from(options)) == kernel


def test_one_query_on_cuda_does_not_use_triton():
    with FakeTensorMode():
        q, k = (torch.empty(2, 3, n, 64, device="cuda", dtype=torch.bfloat16) for n in (1, 1024))
        assert fastest(q, k, k, spec_from({"window": 100})) == "sdpa"


def test_numpy_and_jax_have_kinds_too():
    x = np.zeros((2, 3, 5, 4))
    kind, size = tuning.kind_and_size(x, x, x, DEFAULT)
    assert kind == Kind("numpy", "cpu", 0, "float64", False, "none", False, False)
    assert size == Size(6, 5, 5, 4)


def test_rules_name_kernels():
    assert {name for names in tuning.RULES.values() for name in names} <= set(KERNELS)
    assert all("plain" in names for names in tuning.RULES.values())


def test_a_saved_table_is_loaded_unchanged(tmp_path):
    tuning.save(TABLE, tmp_path / "table.json")
    assert tuning.load(tmp_path / "table.json") == TABLE
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize("text", ["", "{}3", '[{"engine": "torch"}]', "[1]", '{"a": 1}', "null"])
def test_a_broken_table_is_reported_and_not_used(text):
    tuning.path().write_text(text)
    with pytest.raises(ValueError, match="not a valid table"):
        tuning.load(tuning.path())
    with pytest.warns(UserWarning, match="headway bench --tune"):
        assert tuning.table() == {}


def test_invalid_times_are_refused(tmp_path):
    tuning.save(TABLE, tmp_path / "table.json")
    rows = json.loads((tmp_path / "table.json").read_text())
    for wrong in ("fast", 0.0, -1.0, float("nan"), None):
        rows[0]["seconds"]["sdpa"] = wrong
        (tmp_path / "table.json").write_text(json.dumps(rows))
        with pytest.raises(ValueError, match="not a valid table"):
            tuning.load(tmp_path / "table.json")


def test_without_a_writable_cache_the_table_is_empty(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        tuning.path()
    assert tuning.table() == {}


def test_the_digest_depends_on_the_table(tuned):
    assert tuning.digest() == "by rule"
    tuned(TABLE)
    one = tuning.digest()
    tuned({CAUSAL: dict(reversed(TABLE[CAUSAL].items()))})
    assert tuning.digest() == one
    tuned({CAUSAL: {SMALL: TABLE[CAUSAL][SMALL]}})
    assert tuning.digest() not in (one, "by rule")


def test_an_empty_call_has_a_kernel_too(tuned):
    tuned(TABLE)
    empty = torch.zeros(0, 4, 16, 8)
    with torch.no_grad():
        assert headway.attend(empty, empty, empty, causal=True).shape == (0, 4, 16, 8)


def test_attend_warns_and_runs_plain_if_the_chosen_kernel_fails(monkeypatch):
    def late(*call):
        raise headway.Unsupported("after all")

    fast = KERNELS["sdpa"]._replace(run=late)
    for module in ("kernels.table", "dispatch"):
        monkeypatch.setattr(f"headway.attention.{module}.KERNELS", {**KERNELS, "sdpa": fast})
    x = torch.randn(1, 4, 16, 8)
    plain = headway.attend(x, x, x, kernel="plain")
    with pytest.warns(UserWarning, match="attend runs 'plain' instead of 'sdpa': after all"):
        assert torch.equal(headway.attend(x, x, x), plain)
    with pytest.raises(headway.Unsupported, match="after all"):
        headway.attend(x, x, x, kernel="sdpa")


def test_other_threads_are_another_kind(tuned):
    tuned(TABLE)
    with torch.no_grad():
        assert tuning.ranking(*call())[0] == "plain"
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            assert tuning.ranking(*call())[0] == "sdpa"
        finally:
            torch.set_num_threads(threads)
