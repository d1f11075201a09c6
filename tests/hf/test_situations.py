"""Whole models of transformers in the situations in which people run them."""

import json
import os
import time

import pytest
import torch

import observatory
from command import run as command
from headway.hf.families import families, tiny_model
from headway.hf.situations import SITUATIONS, observe

FAMILIES = {family.name: family for family in families()}
WRONG = ("wrong", "not finite", "raised")
# transformers computes the softmax in float32, in which the mask's smallest float64 is -inf.
KNOWN = {("eager", name, "float64") for name in ("left padding", "window", "fully masked row")}


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
        "bert": {"whole text", "right padding", "fully masked row"},
        "t5": {"whole text", "cache", "chunked prefill", "right padding"},
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


def reversed_mask(given):
    mask = given["attention_mask"]
    return given if mask is None else {**given, "attention_mask": 1 - mask}


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("gpt2", without("position_ids"), {"left padding", "packed documents"}),
        ("llama", without("attention_mask"), {"left padding"}),
        ("llama", reversed_mask, {"left padding", "right padding"}),
        ("gpt2", without("past_key_values"), {"cache", "chunked prefill"}),
        ("mistral", without("past_key_values"), {"cache", "chunked prefill", "window"}),
    ],
)
def test_a_fault_is_found_in_its_situations(name, change, found):
    cells = observed(name, changed(name, change), **FLOAT32)
    assert {cell.situation for cell in cells if cell.verdict in WRONG} >= found
    assert {cell.situation for cell in cells if cell.verdict == "ok"} >= {"whole text"}


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


def test_a_folder_is_also_run_in_transformers(tmp_path):
    model = tiny_model(FAMILIES["llama"])
    model.save_pretrained(tmp_path / "folder")
    result = command(tmp_path, "check", "./folder", "--only", "runs")
    assert "in transformers" not in result.stdout
    result = command(tmp_path, "check", "./folder")
    assert "✓ cache" in result.stdout
    assert "./folder in transformers: " in result.stdout


# The table of all families


def _work(connection):
    while (name := connection.recv()) is not None:
        if name == "crashes":
            os._exit(1)
        if name == "hangs":
            time.sleep(60)
        connection.send({"name": name, "versions": observatory.VERSIONS, "reason": "fine"})


def family(name):
    return observatory.WatchedFamily(name, "causal", "Model")


def test_a_family_that_crashes_or_hangs_does_not_stop_the_others():
    worker = observatory.Worker()
    results = [worker(family(n), 10, _work) for n in ("one", "crashes", "two")]
    results += [worker(family(n), 1, _work) for n in ("hangs",)]
    results.append(worker(family("three"), 10, _work))
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
    path.write_text(path.read_text() + '{"name": "cut')  # stopped while writing
    assert observatory.run(wanted, path, Worker, processes=1) == results
    assert "3 families, 0 of them run" in observatory.table(results)


def test_the_page_has_all_families():
    text = observatory.PAGE.read_text()
    assert f"{observatory.VERSIONS}: {len(FAMILIES)} families" in text, "run `make observatory`"
