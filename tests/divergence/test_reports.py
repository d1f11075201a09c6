"""Public reports of ports whose numbers differ, replayed.

The code is our own and keeps the essence of each report. `diff` names the step that is wrong, and
proves it; it is silent about the port with the fix.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import headway
import planted
from compact import Gemma, Gemma2, Llama, Llama3, NeoX, Olmoe, Qwen2, Roberta
from planted import Fault

ATTENTION = "blocks.0.attention."

# In the ports of `planted`: the text of the fix becomes that of the report.
FAULTS = [
    Fault(
        "gpt2",
        "FareedKhan-dev/train-llm-from-scratch#3: scores are divided by the root of the width",
        "scores / math.sqrt(self.head_dim)",
        "scores / math.sqrt(C)",
        f"{ATTENTION}scaled",
        "scale",
    ),
    Fault(
        "mistral",
        "NVIDIA-NeMo/Megatron-Bridge#2656: the window is one token too long",
        "distance < self.window",
        "distance <= self.window",
        f"{ATTENTION}masked",
        "mask",
    ),
    Fault(
        "qwen3",
        "apple/axlearn#842: heads of keys and values are repeated as 0 1 0 1 instead of 0 0 1 1",
        "        k = k.repeat_interleave(self.share, dim=2)\n"
        "        v = v.repeat_interleave(self.share, dim=2)\n",
        "        k, v = k.repeat(1, 1, self.share, 1), v.repeat(1, 1, self.share, 1)\n",
        f"{ATTENTION}scores",
        "packing",
    ),
    Fault(
        "qwen3",
        "paiml/aprender#2085: no norm of queries and keys",
        "        q = rms_norm(q, self.q_norm, self.eps)\n"
        "        k = rms_norm(k, self.k_norm, self.eps)\n",
        "",
        f"{ATTENTION}unrotated_queries",
        "norm",
    ),
]


EPS_OF_BERT = Fault(
    "bert",
    "keras-team/keras-hub#642: norms of the layers have eps 1e-5, that of the embedding 1e-12",
    "        self.attention = SelfAttention(c)\n",
    "        self.attention = SelfAttention(c)\n        c = {**c, 'layer_norm_eps': 1e-5}\n",
    "blocks.0.attention_norm",
    "norm",
)


class EpsOutside(Llama):
    """EleutherAI/gpt-neox#1342: eps is added to the root of the mean square, not to the square."""

    first = "blocks.0.attention_norm"

    def norm(self, name: str, x: Tensor) -> Tensor:
        root = x.pow(2).mean(-1, keepdim=True).sqrt()
        return x / (root + self.c.rms_norm_eps) * self.weight(f"{name}.weight")


class NeighboursAsPairs(Llama):
    """pytorch/torchtitan#335: neighbours are pairs, but the weights are for halves as pairs."""

    first = f"{ATTENTION}queries"

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None] * self.frequencies(x.shape[-1])
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        turns = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(pairs * turns).flatten(-2)


class Unscaled(Llama3):
    """unslothai/unsloth#6197: rotary positions ignore the scaling of Llama 3.1."""

    first = f"{ATTENTION}queries"

    def frequencies(self, dim: int) -> Tensor:
        return Llama.frequencies(self, dim)


class RandomHead(Llama3):
    """tinygrad/tinygrad#13796: the tied output layer is not loaded and stays random."""

    first = "logits"

    def logits(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        size = self.c.vocab_size, self.c.hidden_size
        return F.linear(x, torch.randn(size, generator=generator).to(x))


class WithoutBias(Qwen2):
    """sbryngelson/ANEForge#253: the biases of queries, keys and values are not loaded."""

    first = f"{ATTENTION}unrotated_queries"

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight"))


class UnscaledEmbedding(Gemma):
    """marin-community/levanter#978: the embedding is not multiplied by the root of the width."""

    first = "embedded"

    def embed(self, tokens: Tensor) -> Tensor:
        return Llama.embed(self, tokens)


class ScaledTable(Gemma):
    """mattn/tensai#248: the table of Gemma 3 is scaled, and the tied output layer reads it too."""

    first = "logits"

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x) * self.c.hidden_size**0.5


class NormOfLlama(Gemma):
    """linkedin/Liger-Kernel#74: norms multiply by the weight instead of 1 + weight.

    The norms of a watched model have no names, so the first wrong step is that after them.
    """

    first = f"{ATTENTION}queries"

    def norm(self, name: str, x: Tensor) -> Tensor:
        return Llama.norm(self, name, x)


class ExactGelu(Gemma):
    """OpenNMT/CTranslate2#1658: exact GELU, where Gemma has the approximation with tanh."""

    first = "blocks.0.mlp.output"

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class ScaleByWidth(Gemma2):
    """ggml-org/llama.cpp#8444: the scale is that of the width divided by the number of heads."""

    first = f"{ATTENTION}scaled"

    def scale(self, dim: int) -> float:
        return (self.c.hidden_size // self.c.num_attention_heads) ** -0.5


class WithoutCaps(Gemma2):
    """ggml-org/llama.cpp#8197: neither the scores nor the logits are capped."""

    first = f"{ATTENTION}capped"

    def capped(self, scores: Tensor) -> Tensor:
        return scores

    def logits(self, x: Tensor) -> Tensor:
        return Gemma.logits(self, x)


class WrongCap(Gemma2):
    """unslothai/unsloth-zoo#593: the tanh of the logits is multiplied by them, not by the cap."""

    first = "logits"

    def logits(self, x: Tensor) -> Tensor:
        logits = Gemma.logits(self, x)
        return logits * (logits / self.c.final_logit_softcapping).tanh()


class OtherLayersHaveTheWindow(Gemma2):
    """NVIDIA-NeMo/Megatron-Bridge#4875: layers are counted from 1, so the others get the window."""

    first = f"{ATTENTION}masked"

    def visible(self, n: int, distance: Tensor) -> Tensor:
        return super().visible(n + 1, distance)


class ParallelResidual(NeoX):
    """ml-explore/mlx-lm#586: the MLP always reads the input of the layer, as in parallel layers."""

    first = "blocks.0.mlp.output"

    def layer(self, n: int, at: str, x: Tensor) -> Tensor:
        attention = self.attention(n, f"{at}.attention", self.norm(f"{at}.input_layernorm", x))
        mlp = self.mlp(f"{at}.mlp", self.norm(f"{at}.post_attention_layernorm", x))
        return attention + mlp + x


class MlpFirst(NeoX):
    """ml-explore/mlx-lm#586, with the MLP first, so that attention is computed after it."""

    first = "blocks.0.mlp.output"

    def layer(self, n: int, at: str, x: Tensor) -> Tensor:
        mlp = self.mlp(f"{at}.mlp", self.norm(f"{at}.post_attention_layernorm", x))
        x = x + self.attention(n, f"{at}.attention", self.norm(f"{at}.input_layernorm", x))
        return x + mlp


class RotaryOverTheHead(NeoX):
    """pie-project/pie#603: pairs and frequencies of partial rotary positions are of the whole head.

    The report is about other families with partial rotary positions.
    """

    first = f"{ATTENTION}queries"

    def frequencies(self, dim: int) -> Tensor:
        frequencies = Llama.frequencies(self, dim)
        frequencies[len(super().frequencies(dim)) :] = 0
        return frequencies


class SharesOfTheChosen(Olmoe):
    """lablup/mlxcel#391: the softmax of the router is over the chosen experts, not over all."""

    first = "blocks.0.mlp.output"

    def shares(self, scores: Tensor) -> Tensor:
        shares = super().shares(scores)
        return shares / shares.sum(-1, keepdim=True)


class PositionsFrom0(Roberta):
    """huggingface/sentence-transformers#3879: positions count from 0, not from the padding on."""

    first = "embedded"

    def positions(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1])


PORTS = [
    *(EpsOutside, NeighboursAsPairs, Unscaled, RandomHead, WithoutBias),
    *(UnscaledEmbedding, ScaledTable, NormOfLlama, ExactGelu),
    *(ScaleByWidth, WithoutCaps, WrongCap, OtherLayersHaveTheWindow),
    *(ParallelResidual, RotaryOverTheHead, SharesOfTheChosen, PositionsFrom0),
    MlpFirst,
]


def source(text):
    """The repository and number of a report, which begin its text."""
    return text.partition(":")[0]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The model of each family, and what is compared: its folder, if Headway can read it."""

    @cache
    def original(family):
        model = family.original()
        if family not in (Llama, Llama3, Qwen2):
            return model, model
        path = tmp_path_factory.mktemp(family.kind)
        model.save_pretrained(path)
        return model, path

    return original


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: source(fault.name))
def test_a_fault_in_a_port_of_a_folder(fault, folders):
    model, _ = planted.load(fault.port, fault, folders[fault.port])
    report = headway.diff(folders[fault.port], model, planted.tokens())
    assert report.first == fault.first
    assert not report.is_same
    assert report.is_proved


@pytest.mark.parametrize("port", sorted({fault.port for fault in FAULTS}))
def test_a_right_port_of_a_folder_is_the_same(port, folders):
    model, _ = planted.load(port, None, folders[port])
    report = headway.diff(folders[port], model, planted.tokens())
    assert report.is_same
    assert report.first is None


@pytest.mark.parametrize("port", PORTS, ids=lambda port: source(port.__doc__))
def test_a_fault_in_a_compact_port(port, originals):
    model, a = originals(port.__base__)
    report = headway.diff(a, port(model), planted.tokens())
    assert report.first == port.first
    assert not report.is_same
    assert report.is_proved


@pytest.mark.parametrize(
    "family", sorted({port.__base__ for port in PORTS}, key=lambda family: family.__name__)
)
def test_a_right_compact_port_is_the_same(family, originals):
    model, a = originals(family)
    report = headway.diff(a, family(model), planted.tokens())
    assert report.is_same
    assert report.first is None


def test_a_difference_below_the_rounding_of_float32_is_not_seen(folders):
    """A limit of `diff`: float32 cannot show this difference either."""
    model, _ = planted.load("bert", EPS_OF_BERT, folders["bert"])
    report = headway.diff(folders["bert"], model, planted.tokens())
    logits = report.steps[-1]
    assert report.is_same
    assert 1e-8 < logits.difference < logits.limit  # a right port differs by rounding of float64


def test_a_mixture_of_experts_as_transformers_makes_it():
    model = Olmoe.original()
    model.set_experts_implementation(None)
    assert headway.diff(model, Olmoe(model), planted.tokens()).is_same
