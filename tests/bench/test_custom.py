"""Somebody's own attention beside the others."""

from dataclasses import replace

import pytest

from headway.bench import compare, implementations
from headway.bench.compare import Bench
from headway.bench.custom import CustomAttention
from headway.bench.settings import Setting

QKV = Setting(batch=2, tokens=24, heads=3, kv_heads=3, head_dim=8)
LAYER = replace(QKV, projections=True)

CODE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, d_model=24, heads=3, ahead=0, factor=1.0):
        super().__init__()
        self.heads, self.ahead, self.factor = heads, ahead, factor
        self.qkv = nn.Linear(d_model, 3 * d_model)

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = parts.chunk(3, 1)
        scores = self.factor * q @ k.mT / k.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:]).triu(1 + self.ahead).bool()
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights

def attend(q, k, v, *, causal=False, window=None, ahead=0):
    scores = q @ k.mT / k.shape[-1] ** 0.5
    far = torch.arange(scores.shape[-2])[:, None] - torch.arange(scores.shape[-1])
    if causal:
        scores = scores.masked_fill(far < -ahead, -torch.inf)
    if window is not None:
        scores = scores.masked_fill((far < 0) | (far >= window), -torch.inf)
    return scores.softmax(-1) @ v

def always(q, k, v):
    return attend(q, k, v, causal=True)

def mixes(x):
    later = torch.ones(x.shape[-2], x.shape[-2]).triu(1).bool()
    return (x @ x.mT).masked_fill(later, -torch.inf).softmax(-1) @ x

def two(q, k): return q
def flat(): return nn.TransformerEncoderLayer
number = 3
torch_sdpa = torch.nn.functional.scaled_dot_product_attention
"""


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "PATIENCE", 1e6)
    monkeypatch.setattr(implementations, "find_spec", lambda name: None)  # JAX takes seconds
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def measured(target, setting, *settings):
    custom = CustomAttention.load(f"mine.py:{target}", settings)
    bench = Bench(1e-3, lambda dtype: 1e30, kernels=["plain"], custom=[custom.candidate(setting)])
    table = bench.compare(setting)
    return table, next((row for row in table.rows if row.name == custom.name), None)


@pytest.mark.parametrize("target", ["attend", "always", "torch_sdpa"])
def test_a_function_of_queries_keys_and_values(target):
    _, row = measured(target, QKV)
    assert row.verdict == "right", row
    assert row.speed > 0


def test_its_options_are_used_or_refused():
    setting = replace(QKV, window=5)
    assert measured("attend", setting)[1].verdict == "right"
    assert measured("always", setting)[0].left_out == {"mine.py:always": "does not accept a window"}
    assert (
        "seeded dropout"
        in measured("attend", replace(QKV, dropout=0.1))[0].left_out["mine.py:attend"]
    )
    assert measured("attend", replace(QKV, causal=False))[1].verdict == "right"


@pytest.mark.parametrize("setting", [LAYER, replace(LAYER, dtype="bfloat16", backward=False)])
def test_a_module_of_x_is_held_to_itself(setting):
    table, row = measured("Mine", setting)
    assert row.verdict == "right", row
    assert 0 < row.error < 20 * table.plain_error


def test_a_function_of_x_has_no_error_that_could_be_known():
    _, row = measured("mixes", LAYER)
    assert row.verdict == "right"
    assert row.error is None
    assert row.speed > 0


@pytest.mark.parametrize(
    ("target", "setting", "settings", "message"),
    [
        ("Mine", LAYER, ["ahead=1"], "the next one"),
        ("attend", QKV, ["ahead=1"], "the next one"),
        ("always", replace(QKV, causal=False), [], "it is causal, but was not declared causal"),
    ],
)
def test_what_the_doctor_finds_is_not_ranked(target, setting, settings, message):
    _, row = measured(target, setting, *settings)
    assert row.verdict == "wrong"
    assert row.speed is None
    assert message in row.reason


def test_what_takes_x_is_left_out_where_queries_are_given():
    assert "takes x" in measured("Mine", QKV)[0].left_out["mine.py:Mine"]
    assert "takes queries" in measured("attend", LAYER)[0].left_out["mine.py:attend"]


def test_its_width_is_seen():
    assert CustomAttention.load("mine.py:Mine", ["d_model=48"]).width == 48
    assert (
        CustomAttention.load("torch.nn:MultiheadAttention", ["embed_dim=48", "num_heads=4"]).width
        == 48
    )
    assert CustomAttention.load("mine.py:attend", []).width is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine.py:two", "it takes 2 inputs"),
        ("mine.py:number", "is not an attention"),
        ("mine.py:Mien", "did you mean 'Mine'"),
        ("jax.nn:dot_product_attention", "the bench accepts PyTorch"),
    ],
)
def test_what_is_no_attention_gets_a_line(target, message):
    import jax  # noqa: F401 - so that the adapter knows it

    with pytest.raises(ValueError, match=message):
        CustomAttention.load(target, [])
