"""Public bugs of whole models, in caches, padding, packing and windows, replayed.

The code is our own and keeps the essence of each report. The doctor finds the bug and names it; the
model without it passes with the same declaration.
"""

from __future__ import annotations

import re
from functools import cache
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
        (model,) = self.model
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = turn(q, positions), turn(k, positions)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        k, v, may = model.written(k, q), model.written(v, q), model.written(may.mT, q).mT
        scores = q @ k.mT / 8**0.5
        weights = scores.masked_fill(~may, -torch.inf).softmax(-1).nan_to_num(0)
        return self.o((weights @ v).transpose(1, 2).flatten(2)), (model.kept(k), model.kept(v))


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

    def positions(self, tokens: Tensor, mask: Any, documents: Any, before: int) -> Tensor:
        columns = torch.arange(before, before + tokens.shape[1])[None]
        if mask is not None:
            return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if documents is not None:  # they begin at 0 again
            return columns - (documents[:, None] == documents[:, :, None]).int().argmax(-1)
        return columns

    def in_layer(self, positions: Tensor, layer: int, before: int) -> Tensor:
        return positions

    def allowed(self, queries: int, keys: int, in_cache: bool) -> Tensor:
        distance = torch.arange(queries)[:, None] + (keys - queries) - torch.arange(keys)
        return (distance >= 0) & (distance < (self.window or keys))

    def of_documents(self, documents: Tensor) -> Tensor:
        return (documents[:, :, None] == documents[:, None])[:, None]

    def of_padding(self, mask: Tensor, before: int) -> Tensor:
        return mask[:, None, None]

    def written(self, x: Tensor, queries: Tensor) -> Tensor:
        """The keys that are there while the queries attend."""
        return x

    def kept(self, x: Tensor) -> Tensor:
        """The keys that stay in the cache."""
        return x

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Any = False,
    ) -> Any:
        before, past = cache or (0, [None] * len(self.blocks))
        keys = tokens.shape[1] + (0 if past[0] is None else past[0][0].shape[2])
        positions = self.positions(tokens, mask, documents, before)
        may = self.allowed(tokens.shape[1], keys, cache is not False)
        if mask is not None:
            may = may & self.of_padding(mask, before)
        if documents is not None:
            may = may & self.of_documents(documents)
        x, after = self.embedding(tokens) + self.position(positions), []
        for layer, (block, kept) in enumerate(zip(self.blocks, past, strict=True)):
            change, kept = block(x, self.in_layer(positions, layer, before), may, kept)
            x = x + change
            after.append(kept)
        logits = self.head(x)
        return logits if cache is False else (logits, (before + tokens.shape[1], after))


class Rolling(GPT):
    """Its cache keeps those keys that the next token attends to."""

    def kept(self, x: Tensor) -> Tensor:
        return x[:, :, -(self.window - 1) :]


class SharedPositions(GPT):
    def positions(self, tokens: Tensor, mask: Any, documents: Any, before: int) -> Tensor:
        return super().positions(tokens, None, documents, before)


class PaddingIsRead(GPT):
    def of_padding(self, mask: Tensor, before: int) -> Tensor:
        return torch.ones_like(mask)[:, None, None]


class PaddingIsReadInSteps(GPT):
    def of_padding(self, mask: Tensor, before: int) -> Tensor:
        return super().of_padding(torch.ones_like(mask) if before else mask, before)


class PaddingOfTheFirstRow(GPT):
    def of_padding(self, mask: Tensor, before: int) -> Tensor:
        return mask[:1, None, None]


class PositionsRestart(GPT):
    def positions(self, tokens: Tensor, mask: Any, documents: Any, before: int) -> Tensor:
        return super().positions(tokens, mask, documents, 0)


class UpperLayersCountTwice(GPT):
    def in_layer(self, positions: Tensor, layer: int, before: int) -> Tensor:
        return positions + positions.shape[1] if layer and before else positions


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


class WindowIsOneMore(GPT):
    def __init__(self, window: int) -> None:
        super().__init__(window + 1)


class WindowIsNotPassedOn(GPT):
    def __init__(self, window: int) -> None:
        super().__init__(None)


class WindowRollsTooEarly(Rolling):
    def kept(self, x: Tensor) -> Tensor:
        return x[:, :, -(self.window - 2) :]


class WindowIsOverwritten(Rolling):
    def written(self, x: Tensor, queries: Tensor) -> Tensor:
        ring = max(2 * self.window, queries.shape[2])  # the largest chunk fills it
        return x[..., -ring:, :]


class DocumentsByPositionsOnly(GPT):
    def of_documents(self, documents: Tensor) -> Tensor:
        return torch.ones(len(documents), 1, 1, 1, dtype=torch.bool)


class DocumentsOfTheFirstRow(GPT):
    def of_documents(self, documents: Tensor) -> Tensor:
        return super().of_documents(documents[:1])


class PositionsContinueInDocuments(GPT):
    def positions(self, tokens: Tensor, mask: Any, documents: Any, before: int) -> Tensor:
        return super().positions(tokens, mask, None, before)


# The bug, the features, the check that fails, what it must say, the source, what was wrong there.
BUGS = [
    (SharedPositions, "mask", "padding", "padding .* has positions",
     "unslothai/unsloth#3699", "a left-padded batch shares one row of positions"),
    (PaddingIsRead, "mask", "padding", "tokens attend to padding",
     "TransformerLensOrg/TransformerLens#1005",
     "padding is not masked while generating for a batch"),
    (PaddingIsReadInSteps, "mask,cache", "padding", "^with a cache, tokens attend to padding",
     "OpenNMT/OpenNMT-py#2532", "the mask of padding is applied in the first step only"),
    (PaddingOfTheFirstRow, "mask", "padding", "changes another row",
     "axonn-ai/yalis#53",
     "the block mask of flex_attention has no batch axis, so all texts have the length of one"),
    (PositionsRestart, "cache", "cache", "positions do not continue",
     "RobertCsordas/moeut#6", "the rotary position of a cached step is 0"),
    (UpperLayersCountTwice, "cache", "cache", "positions do not continue|positions .* wrong",
     "fla-org/flash-linear-attention#766",
     "the first layer counts a new token before the upper layers read the length of the cache"),
    (FromTheTopLeft, "cache", "cache", "not aligned with the cache|top left",
     "hyprstream/hyprstream#1521",
     "tril(0) of (queries, keys) hides the history from a chunk after a cache"),
    (NoMaskWithACache, "cache", "cache", "chunk depend on later",
     "Mikyx-1/TinyLLM#18", "the causal mask is skipped if there is a cache, also for a prompt"),
    (WindowLostInDecode, "cache", "cache", "window .*lost",
     "karpathy/nanochat#452", "a step of one token sees the whole cache, not the window"),
    (WindowTooWide, "cache", "cache", "window",
     "ml-explore/mlx-lm#390", "the mask has one key more than the cache keeps"),
    (WindowRollsTooEarly, "cache", "cache", "size of the cache .*off by one",
     "huggingface/transformers#37574", "the cache drops its oldest key before it is full"),
    (WindowIsOverwritten, "cache", "cache", "keys or values in the cache are lost",
     "pytorch/executorch#20346",
     "a chunk longer than the window overwrites keys that its first tokens still attend to"),
    (WindowIsOneMore, "", "past", "layers were 4, not 3: < and <= are mixed up",
     "huggingface/transformers#39408", "window_size of a kernel does not count the token itself"),
    (WindowIsNotPassedOn, "", "past", "window of 3 .* is not applied",
     "unslothai/unsloth#8253", "the window is not passed on to scaled_dot_product_attention"),
    (DocumentsByPositionsOnly, "documents", "documents", "documents .* attend to each other",
     "DeepOpt-com/WrinkleFree-Monorepo#53", "packing resets the positions and masks nothing"),
    (DocumentsOfTheFirstRow, "documents", "documents", "documents of another batch row",
     "meta-pytorch/attention-gym#98",
     "create_block_mask(B=None) takes the documents of the first row for the whole batch"),
    (PositionsContinueInDocuments, "documents", "documents", "not start at 0 in every document",
     "hiyouga/LlamaFactory#7318", "the mask separates documents, the positions continue"),
]  # fmt: skip


@cache
def failed(model: type, features: str, window: int | None) -> dict[str, str]:
    """The diagnoses of the failed checks; many bugs have the same repaired model."""
    declared: dict[str, Any] = {"kind": "model", "features": features, "window": window}
    report = diagnose(model(window), **declared, layers=2, restart=True)
    return {finding.check: finding.diagnosis for finding in report.failed}


@pytest.mark.parametrize(("bug", "features", "check", "said", "source", "why"), BUGS)
def test_a_public_bug_is_named_and_its_repair_passes(bug, features, check, said, source, why):
    window = 3 if "Window" in bug.__name__ else None
    report = failed(bug, features, window)
    assert re.search(said, report.get(check, "")), (source, report)
    assert failed(bug.__base__, features, window) == {}


class NoPaddingWithACache(GPT):
    def of_padding(self, mask: Tensor, before: int) -> Tensor:
        if before:
            raise NotImplementedError("padding with a cache")
        return super().of_padding(mask, before)


def test_padding_that_cannot_be_combined_with_a_cache_is_told():
    model = NoPaddingWithACache()
    (finding,) = diagnose(model, kind="model", features="mask,cache", only=["padding"]).findings
    assert finding.verdict == "pass"
    assert finding.measured.startswith("not tested with a cache (")


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        (2, "each of the 2 layers were 2, not 3: < and <="),
        (4, "were 4, not 3: < and <="),
        (9, "window of 3 is wider, or is not applied"),
    ],
)
def test_the_window_of_a_model_is_measured(actual, said):
    declared = {"kind": "model", "window": 3, "layers": 2, "only": ["past"]}
    (finding,) = diagnose(GPT(actual), **declared).failed
    assert re.search(said, finding.diagnosis), finding.diagnosis


def test_without_layers_a_window_may_reach_any_distance():
    assert diagnose(GPT(4), kind="model", window=3, only=["past"]).ok


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
    assert "window" in failed["past"]


def test_a_mask_of_the_first_step_only_in_transformers(monkeypatch):
    """OpenNMT/OpenNMT-py#2532: the mask of padding is not passed to later steps."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    (right,) = diagnose(model, only=["padding"]).findings
    assert right.verdict == "pass"
    assert right.measured.startswith("with a cache, ")
    forward = transformers.LlamaForCausalLM.forward

    def faulty(self, *args, attention_mask=None, past_key_values=None, **kwargs):
        mask = attention_mask if past_key_values is None else None
        return forward(self, *args, attention_mask=mask, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", faulty)
    (finding,) = diagnose(model, only=["padding"]).failed
    assert finding.diagnosis.startswith("with a cache, tokens attend to padding")
