"""Whole models of transformers in the situations in which people run them."""

import ast
import json
import subprocess
import sys

import pytest
import torch
import transformers

import observatory
from command import run as command
from headway import tracing
from headway.attention import dispatch
from headway.check import models
from headway.hf.families import families, tiny_model
from headway.hf.situations import SITUATIONS, observe
from misbehaving import work

FAMILIES = {family.name: family for family in families()}
WRONG = ("wrong", "not finite", "raised")
# transformers computes the softmax in float32, in which the mask's smallest float64 is -inf.
KNOWN = {("eager", name, "float64") for name in ("left padding", "window", "fully masked row")}


PADDED = {"left padding", "right padding", "fully masked row"}


def observed(name, model=None, **options):
    family = FAMILIES[name]
    return observe(model or tiny_model(family), family.task, **options)


def wrong(cells):
    return {(c.implementation, c.situation, c.dtype) for c in cells if c.verdict in WRONG}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bert", "t5"])
def test_the_models_of_transformers_are_right(name):
    cells = observed(name)
    assert wrong(cells) <= KNOWN
    assert len(cells) == 9 * len(SITUATIONS)
    assert all(cell.detail for cell in cells if cell.verdict == "not applicable")
    fine = {cell.situation for cell in cells if cell.verdict == "ok"}
    expected = {
        "llama": {*SITUATIONS} - {"window"},
        "gpt2": {*SITUATIONS} - {"window"},
        "mistral": {*SITUATIONS},
        "bert": {"whole text", *PADDED},
        "t5": {"whole text", "cache", "chunked prefill", *PADDED},
    }
    assert fine == expected[name]


FLOAT32 = {"dtypes": ("float32",), "implementations": ("eager",)}


def changed(name, change):
    """A tiny model whose arguments are changed before each call."""
    model = tiny_model(FAMILIES[name])
    forward = type(model).forward

    class Changed(type(model)):
        __doc__ = ""

        def forward(
            self, input_ids, attention_mask=None, position_ids=None, past_key_values=None,
            use_cache=None,
        ):  # fmt: skip
            given = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "use_cache": use_cache,
            }
            output = forward(self, **change(given))
            return getattr(change, "after", lambda o: o)(output)

    Changed.__module__ = type(model).__module__
    model.__class__ = Changed
    return model


def without(name):
    return lambda given: {**given, name: None}


def without_last_token(given):
    if given["past_key_values"] is not None:
        given["past_key_values"].crop(-1)
    return given


def raises_for_padding(given):
    if given["attention_mask"] is not None:
        raise IndexError("out of range")
    return given


def reversed_mask(given):
    mask = given["attention_mask"]
    return given if mask is None else {**given, "attention_mask": 1 - mask}


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("gpt2", without("position_ids"), {"left padding", "packed documents"}),
        ("llama", without("attention_mask"), {"left padding"}),
        ("llama", reversed_mask, {"left padding", "right padding"}),
        ("bert", without("attention_mask"), PADDED - {"fully masked row"}),
        ("gpt2", without("past_key_values"), {"cache", "chunked prefill"}),
        ("llama", without_last_token, {"cache", "chunked prefill"}),
        ("llama", raises_for_padding, PADDED),
        ("mistral", without("past_key_values"), {"cache", "chunked prefill", "window"}),
    ],
)
def test_a_fault_is_found_in_its_situations(name, change, found):
    cells = observed(name, changed(name, change), **FLOAT32)
    assert {cell.situation for cell in cells if cell.verdict in WRONG} >= found
    assert {cell.situation for cell in cells if cell.verdict == "ok"} >= {"whole text"}


def test_ours_is_the_formula_and_a_kernel(monkeypatch):
    run = dispatch.run
    for fault in ("plain", "another"):

        def changed_run(queries, keys, values, spec, kernel, fault=fault):
            context = run(queries, keys, values, spec, kernel)
            is_formula = tracing.wanted(("weights",)) is not None
            return context * 1.01 if is_formula == (fault == "plain") else context

        monkeypatch.setattr(dispatch, "run", changed_run)
        cells = observed("gpt2", dtypes=("float32",))
        bad = [cell for cell in cells if cell.verdict == "wrong"]
        assert {cell.implementation for cell in bad} == {"ours"}
        assert {cell.situation for cell in bad} == {*SITUATIONS} - {"window"}
        name = "formula" if fault == "plain" else "kernel"
        assert {cell.detail for cell in bad} == {name}


def test_what_does_not_run_is_not_ok():
    cells = observed("bloom", dtypes=("float32",))  # it has neither sdpa nor the interface
    reasons = {(c.implementation, c.detail) for c in cells if c.implementation != "eager"}
    assert reasons == {
        ("sdpa", "it does not support sdpa"),
        ("ours", "it does not call attention through transformers' interface"),
    }
    assert {c.verdict for c in cells if c.implementation != "eager"} == {"not applicable"}
    cells = observed("mamba", dtypes=("float32",))
    assert "ok" not in {c.verdict for c in cells if c.implementation == "ours"}


def test_a_mixture_of_experts_runs_in_float64():
    cells = observed("mixtral")
    assert wrong(cells) <= KNOWN
    fine = {cell.situation for cell in cells if cell.dtype == "float64" and cell.verdict == "ok"}
    assert fine == {*SITUATIONS} - {"window"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "not finite"), (1.1, "wrong")])
def test_a_masked_row_must_be_finite_and_change_nothing(factor, verdict):
    def same(given):
        same.mask = given["attention_mask"]
        return given

    def spoil(output):
        if same.mask is not None and not same.mask[1].any():
            output.logits[0] *= factor
            output.logits[1, -1] = torch.nan
        return output

    same.after = spoil
    cells = observed("llama", changed("llama", same), **FLOAT32)
    assert {(c.situation, c.verdict) for c in cells if c.verdict in WRONG} == {
        ("fully masked row", verdict)
    }


def test_nan_is_not_ok():
    def same(given):
        return given

    def spoil(output):
        output.logits[0, -1, 0] = torch.nan
        return output

    model = changed("llama", same)
    same.after = spoil
    with pytest.raises(ValueError, match="not finite"):
        observed("llama", model, **FLOAT32)  # also alone
    same.after = lambda output: spoil(output) if len(output.logits) > 1 else output
    with pytest.raises(ValueError, match="not finite"):
        observed("llama", model, **FLOAT32)


def test_the_command_shows_the_table_and_fails(tmp_path):
    result = command(tmp_path, "check", "hf:llama")
    assert result.returncode == 1  # eager in float64
    assert "left padding" in result.stdout
    assert "hf:llama: " in result.stdout
    assert "\n✗ eager, left padding, float64: 891 of 2079 logits" in result.stdout
    result = command(tmp_path, "check", "hf:gpt2", "--json")
    assert result.returncode == 0
    cells = json.loads(result.stdout)
    assert {cell["situation"] for cell in cells} == {*SITUATIONS}
    result = command(tmp_path, "check", "hf:lama")
    assert result.returncode == 1
    assert "unknown family 'lama'; did you mean 'llama'?" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_folder_is_also_run_in_transformers(tmp_path, monkeypatch):
    model = tiny_model(FAMILIES["llama"])
    model.save_pretrained(tmp_path / "folder")
    result = command(tmp_path, "check", "./folder", "--only", "runs")
    assert "in transformers" not in result.stdout
    result = command(tmp_path, "check", "./folder")
    assert "✓ cache" in result.stdout
    assert "./folder in transformers: " in result.stdout
    result = command(tmp_path, "check", "./folder", "--json")
    (diagnosis,) = json.loads(result.stdout)
    assert {cell["situation"] for cell in diagnosis["in_transformers"]} == {*SITUATIONS}
    # Without transformers
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    result = command(tmp_path, "check", "./folder")
    assert "✓ cache" in result.stdout
    assert "NOT TESTED: install headway[hf]" in result.stdout
    assert result.returncode == 0
    assert command(tmp_path, "check", "./folder", "--strict").returncode == 1


def test_folders_of_small_models(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1,
        vocab_size=3,
    )  # fmt: skip
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "bert")
    cells = models.of_folder(tmp_path / "bert")
    assert models.is_good(cells)
    assert {c.situation for c in cells if c.verdict == "ok"} >= {"whole text", "right padding"}
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=40, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "short")
    assert "its context of 8 tokens is shorter" in models.of_folder(tmp_path / "short")


def test_a_folder_that_headway_cannot_load(tmp_path):
    tiny_model(FAMILIES["olmo2"]).save_pretrained(tmp_path / "folder")
    result = command(tmp_path, "check", "./folder")
    assert "its own checks are NOT TESTED" in result.stdout
    assert "✗ eager, left padding, float64" in result.stdout
    assert result.returncode == 1
    (tmp_path / "folder" / "model.safetensors").unlink()
    result = command(tmp_path, "check", "./folder")
    assert "./folder was not tested: OSError: " in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


# The table of all families


def family(name):
    return observatory.WatchedFamily(name, "causal", "Model")


@pytest.mark.slow
def test_a_family_that_crashes_or_hangs_does_not_stop_the_others():
    worker = observatory.Worker()
    results = [worker(family(n), 10, work) for n in ("one", "crashes", "two")]
    results += [worker(family(n), 1, work) for n in ("hangs",)]
    results.append(worker(family("three"), 10, work))
    worker.close()
    reasons = [result["reason"] for result in results]
    assert reasons == [
        "fine",
        "the process crashed",
        "fine",
        "it did not end within 1 seconds",
        "fine",
    ]


def test_a_run_resumes(tmp_path):
    calls = []

    class Worker:
        def __call__(self, family):
            calls.append(family.name)
            if family.name == "b" and calls.count("b") == 1:
                raise KeyboardInterrupt
            return {"versions": observatory.VERSIONS, **family._asdict(), "reason": "fine"}

        def close(self):
            pass

    path = tmp_path / "runs" / "store.jsonl"
    wanted = [family(name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        observatory.run(wanted, path, Worker, processes=1)
    results = observatory.run(wanted, path, Worker, processes=1)
    assert calls == ["a", "b", "b", "c"]
    assert [*results] == ["a", "b", "c"]
    lost = {"versions": observatory.VERSIONS, **family("d")._asdict(), "is_lost": True}
    path.write_text(path.read_text() + json.dumps(lost) + '\n{"name": "cut')  # tried again
    assert observatory.run(wanted, path, Worker, processes=1) == results
    assert "3 families, 0 of them run" in observatory.table(results)


FINDINGS = sorted((observatory.ROOT / "docs" / "findings").glob("*.py"))


def test_findings_are_listed_and_import_nothing_of_headway():
    text = observatory.PAGE.read_text()
    for file in FINDINGS:
        assert f"(findings/{file.name})" in text
        names = {
            node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert names <= {"sys", "tempfile", "torch", "transformers"}
    assert text.count("(findings/") == len(FINDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("file", FINDINGS, ids=lambda file: file.stem)
def test_a_finding_is_still_there(file):
    result = subprocess.run([sys.executable, file], capture_output=True, text=True)
    assert result.returncode == 1, "fixed in this version of transformers: update the page"
    assert f"transformers {transformers.__version__}" in result.stdout
    assert "Traceback" not in result.stderr


def test_the_page_has_all_families():
    text = observatory.PAGE.read_text()
    assert f"{observatory.VERSIONS}: {len(FAMILIES)} families" in text, "run `make observatory`"
