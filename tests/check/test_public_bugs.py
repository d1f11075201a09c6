"""Public bugs of whole models, in caches, padding, packing and windows, replayed.

The code is our own and keeps the essence of each report. The doctor finds the bug and names it; the
model without it passes with the same declaration.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.mistral import modeling_mistral

from headway.check import diagnose


class Attention(nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = [model]  # not a submodule
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x: Tensor, positions: Tensor, may: Tensor, past: Any) -> tuple[Tensor, Any]:
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = turn(q, positions), turn(k, positions)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = q @ k.mT / 8**0.5
        weights = scores.masked_fill(~may, -torch.inf).softmax(-1).nan_to_num(0)
        return self.o((weights @ v).transpose(1, 2).flatten(2)), (k, v)


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions (batch, tokens)."""
    angles = positions[:, None, :, None] * 10000.0 ** (-torch.arange(4, dtype=x.dtype) / 4)
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class GPT(nn.Module):
    """A GPT with rotary and learned positions, a window, padding, documents and a cache."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.position = nn.Embedding(40, 16), nn.Embedding(64, 16)
            self.blocks = nn.ModuleList(Attention(self) for _ in range(2))
            self.head = nn.Linear(16, 40, bias=False)

    def positions(self, tokens: Tensor, mask: Tensor | None, before: int) -> Tensor:
        if mask is not None:
            return (mask.long().cumsum(-1) - 1).clamp(min=0)
        return torch.arange(before, before + tokens.shape[1])[None]

    def allowed(self, queries: int, keys: int, in_cache: bool) -> Tensor:
        distance = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)
        return (distance >= 0) & (distance < (self.window or keys))

    def of_documents(self, documents: Tensor) -> Tensor:
        return (documents[:, :, None] == documents[:, None])[:, None]

    def of_padding(self, mask: Tensor) -> Tensor:
        return mask[:, None, None]

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = False,
    ) -> Any:
        past = cache or [None] * len(self.blocks)
        before = past[0][0].shape[2] if past[0] is not None else 0
        positions = self.positions(tokens, mask, before)
        may = self.allowed(tokens.shape[1], before + tokens.shape[1], cache is not False)
        if mask is not None:
            may = may & self.of_padding(mask)
        if documents is not None:
            may = may & self.of_documents(documents)
        x, after = self.embedding(tokens) + self.position(positions), []
        for block, kept in zip(self.blocks, past, strict=True):
            change, kept = block(x, positions, may, kept)
            x = x + change
            after.append(kept)
        logits = self.head(x)
        return logits if cache is False else (logits, after)


class SharedPositions(GPT):
    def positions(self, tokens: Tensor, mask: Tensor | None, before: int) -> Tensor:
        return torch.arange(before, before + tokens.shape[1])[None]


class PaddingIsRead(GPT):
    def of_padding(self, mask: Tensor) -> Tensor:
        return torch.ones_like(mask)[:, None, None]


class PositionsRestart(GPT):
    def positions(self, tokens: Tensor, mask: Tensor | None, before: int) -> Tensor:
        return super().positions(tokens, mask, 0)


class FromTheTopLeft(GPT):
    def allowed(self, queries: int, keys: int, in_cache: bool) -> Tensor:
        return torch.ones(queries, keys, dtype=torch.bool).tril()


class NoMaskWithACache(GPT):
    def allowed(self, queries: int, keys: int, in_cache: bool) -> Tensor:
        may = super().allowed(queries, keys, in_cache)
        return torch.ones_like(may) if in_cache else may


class WindowLostInDecode(GPT):
    def allowed(self, queries: int, keys: int, in_cache: bool) -> Tensor:
        may = super().allowed(queries, keys, in_cache)
        return torch.ones_like(may) if queries == 1 else may


class WindowTooWide(GPT):
    def allowed(self, queries: int, keys: int, in_cache: bool) -> Tensor:
        distance = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)
        width = self.window if in_cache else self.window + 1  # the cache keeps the right number
        return (distance >= 0) & (distance < width)


class DocumentsByPositionsOnly(GPT):
    def of_documents(self, documents: Tensor) -> Tensor:
        return torch.ones(len(documents), 1, 1, 1, dtype=torch.bool)


# The bug, what the doctor must say, the source, and what was wrong there.
BUGS = [
    (SharedPositions, "mask", "padding .* has positions", "unslothai/unsloth#3699",
     "a left-padded batch shares one row of positions"),
    (PaddingIsRead, "mask", "tokens attend to padding", "TransformerLensOrg/TransformerLens#1005",
     "padding is not masked while generating for a batch"),
    (PositionsRestart, "cache", "positions do not continue", "RobertCsordas/moeut#6",
     "the rotary position of a cached step is 0"),
    (FromTheTopLeft, "cache", "not aligned with the cache|top left", "hyprstream/hyprstream#1521",
     "tril(0) of (queries, keys) hides the history from a chunk after a cache"),
    (NoMaskWithACache, "cache", "chunk depend on later", "Mikyx-1/TinyLLM#18",
     "the causal mask is skipped if there is a cache, also for a prompt"),
    (WindowLostInDecode, "cache", "window .*lost", "karpathy/nanochat#452",
     "a step of one token sees the whole cache, not the window"),
    (WindowTooWide, "cache", "window", "ml-explore/mlx-lm#390",
     "the mask has one key more than the cache keeps"),
    (DocumentsByPositionsOnly, "documents", "documents .* attend to each other",
     "DeepOpt-com/WrinkleFree-Monorepo#53", "packing resets the positions and masks nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("bug", "feature", "said", "source", "why"), BUGS)
def test_a_public_bug_is_named_and_its_repair_passes(bug, feature, said, source, why):
    window = 3 if "Window" in bug.__name__ else None
    declared: dict[str, Any] = {"kind": "model", "features": (feature,), "window": window}
    report = diagnose(bug(window), **declared)
    assert any(re.search(said, f.diagnosis) for f in report.failed), (source, report.failed)
    assert diagnose(GPT(window), **declared).ok


SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 40}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def mistral() -> Any:
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=3))
    return model.eval()


def test_positions_that_ignore_padding_in_transformers(monkeypatch):
    """unslothai/unsloth#3699: a left-padded batch has the positions of its longest text."""
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=40, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).eval()
    assert diagnose(model, only=["padding", "cache"]).ok
    forward = transformers.GPT2LMHeadModel.forward

    def faulty(self, *args, position_ids=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", faulty)
    (finding,) = diagnose(model, only=["padding"]).failed
    assert "has positions" in finding.diagnosis


def test_a_window_that_is_lost_in_transformers(monkeypatch):
    """As in docs/findings/moshi_window.py: a whole text has no window, the cache has one."""
    assert diagnose(mistral(), only=["past", "cache"]).ok
    monkeypatch.setattr(
        modeling_mistral, "create_sliding_window_causal_mask", modeling_mistral.create_causal_mask
    )
    failed = {f.check: f.diagnosis for f in diagnose(mistral(), only=["past", "cache"]).failed}
    assert "window" in failed["cache"]
