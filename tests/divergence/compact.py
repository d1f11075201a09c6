"""Compact right ports of models of transformers: one class, of which families override a part.

Weights keep their names in the files. Every class is right; the tests of public reports override
one method again, with the fault of the report.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

HEAD = 8  # features of a head, in all of them
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


class Llama(nn.Module):
    """Llama, and the base of the others."""

    kind, task = "llama", "AutoModelForCausalLM"
    keys: ClassVar[dict[str, Any]] = {"num_key_value_heads": 2, "head_dim": HEAD}

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.c = model.config
        values = model.state_dict().items()
        self.weights = nn.ParameterDict({self.key(name): x.clone() for name, x in values})

    @classmethod
    def original(cls) -> transformers.PreTrainedModel:
        """A tiny model of transformers. Its weights are random and large, as in `planted`."""
        config = transformers.AutoConfig.for_model(cls.kind, **(SIZES | cls.keys))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(11)
            model = getattr(transformers, cls.task).from_config(config)
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) / 4
        return model.eval()

    @staticmethod
    def key(name: str) -> str:
        return name.replace(".", "/")

    def weight(self, name: str) -> Tensor:
        return self.weights[self.key(name)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(self.key(f"{name}.bias"))
        return F.linear(x, self.weight(f"{name}.weight"), bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for n in range(self.c.num_hidden_layers):
            x = self.layer(n, f"model.layers.{n}", x)
        return self.logits(self.norm("model.norm", x))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.weight("model.embed_tokens.weight")[tokens]

    def logits(self, x: Tensor) -> Tensor:
        is_tied = self.c.tie_word_embeddings
        return self.linear("model.embed_tokens" if is_tied else "lm_head", x)

    def layer(self, n: int, at: str, x: Tensor) -> Tensor:
        x = x + self.attention(n, f"{at}.self_attn", self.norm(f"{at}.input_layernorm", x))
        return x + self.mlp(f"{at}.mlp", self.norm(f"{at}.post_attention_layernorm", x))

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c.rms_norm_eps)
        return x * self.weight(f"{name}.weight")

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.c.layer_norm_eps)

    def attention(self, n: int, at: str, x: Tensor) -> Tensor:
        q, k, v = self.heads(at, x)  # batch, heads, tokens, features
        q, k = self.rotated(q), self.rotated(k)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = self.capped(q @ k.mT * self.scale(q.shape[-1]))
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        scores = scores.masked_fill(~self.visible(n, distance), -math.inf)
        return self.merged(at, (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def heads(self, at: str, x: Tensor) -> list[Tensor]:
        projected = [self.linear(f"{at}.{name}_proj", x) for name in "qkv"]
        return [y.unflatten(-1, (-1, HEAD)).transpose(1, 2) for y in projected]

    def merged(self, at: str, x: Tensor) -> Tensor:
        return self.linear(f"{at}.o_proj", x)

    def rotated(self, x: Tensor) -> Tensor:
        """Rotary positions: halves of the first features, two for each frequency, are pairs."""
        frequencies = self.frequencies(x.shape[-1])
        angles = (torch.arange(x.shape[-2])[:, None] * frequencies).to(x)
        width, cos, sin = len(frequencies), angles.cos(), angles.sin()
        a, b, rest = x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def frequencies(self, dim: int) -> Tensor:
        theta = self.c.rope_parameters["rope_theta"]
        return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def scale(self, dim: int) -> float:
        return dim**-0.5

    def capped(self, scores: Tensor) -> Tensor:
        return scores

    def visible(self, n: int, distance: Tensor) -> Tensor:
        return distance >= 0

    def mlp(self, at: str, x: Tensor) -> Tensor:
        gate = self.activation(self.linear(f"{at}.gate_proj", x))
        return self.linear(f"{at}.down_proj", gate * self.linear(f"{at}.up_proj", x))

    def activation(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Llama3(Llama):
    """Llama 3.2: the slow frequencies of rotary positions are slower, and the embedding is tied."""

    keys: ClassVar[dict[str, Any]] = Llama.keys | {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }

    def frequencies(self, dim: int) -> Tensor:
        rope, plain = self.c.rope_parameters, super().frequencies(dim)
        turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * (share + (1 - share) / self.factor())

    def factor(self) -> float:
        return self.c.rope_parameters["factor"]


class Qwen2(Llama):
    """Qwen 2: queries, keys and values have a bias."""

    kind = "qwen2"
    keys: ClassVar[dict[str, Any]] = {"num_key_value_heads": 2, "hidden_size": 4 * HEAD}


class Gemma(Llama):
    """Gemma: the embedding is scaled, norms multiply by 1 + weight, and GELU is approximated."""

    kind = "gemma"

    def embed(self, tokens: Tensor) -> Tensor:
        return super().embed(tokens) * self.c.hidden_size**0.5

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c.rms_norm_eps)
        return x * (1 + self.weight(f"{name}.weight"))

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class Gemma2(Gemma):
    """Gemma 2: four norms in a layer, capped scores and logits, a window in every other layer."""

    kind = "gemma2"
    keys: ClassVar[dict[str, Any]] = Gemma.keys | {
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    }

    def layer(self, n: int, at: str, x: Tensor) -> Tensor:
        update = self.attention(n, f"{at}.self_attn", self.norm(f"{at}.input_layernorm", x))
        x = x + self.norm(f"{at}.post_attention_layernorm", update)
        update = self.mlp(f"{at}.mlp", self.norm(f"{at}.pre_feedforward_layernorm", x))
        return x + self.norm(f"{at}.post_feedforward_layernorm", update)

    def scale(self, dim: int) -> float:
        return self.c.query_pre_attn_scalar**-0.5

    def capped(self, scores: Tensor) -> Tensor:
        cap = self.c.attn_logit_softcapping
        return (scores / cap).tanh() * cap

    def visible(self, n: int, distance: Tensor) -> Tensor:
        return (distance >= 0) & ((distance < self.c.sliding_window) | (n % 2 == 1))

    def logits(self, x: Tensor) -> Tensor:
        cap = self.c.final_logit_softcapping
        return (super().logits(x) / cap).tanh() * cap


class NeoX(Llama):
    """GPT-NeoX with residuals in sequence: each head has its queries, keys and values in a row."""

    kind = "gpt_neox"
    keys: ClassVar[dict[str, Any]] = {
        "hidden_size": 4 * HEAD,
        "use_parallel_residual": False,
        "rope_parameters": SIZES["rope_parameters"] | {"partial_rotary_factor": 0.5},
    }

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.weight("gpt_neox.embed_in.weight")[tokens]
        for n in range(self.c.num_hidden_layers):
            x = self.layer(n, f"gpt_neox.layers.{n}", x)
        return self.linear("lm_head", self.norm("gpt_neox.final_layer_norm", x))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.layer_norm(name, x)

    def layer(self, n: int, at: str, x: Tensor) -> Tensor:
        x = x + self.attention(n, f"{at}.attention", self.norm(f"{at}.input_layernorm", x))
        return x + self.mlp(f"{at}.mlp", self.norm(f"{at}.post_attention_layernorm", x))

    def heads(self, at: str, x: Tensor) -> list[Tensor]:
        joint = self.linear(f"{at}.query_key_value", x)
        return [*joint.unflatten(-1, (self.c.num_attention_heads, -1)).transpose(1, 2).chunk(3, -1)]

    def merged(self, at: str, x: Tensor) -> Tensor:
        return self.linear(f"{at}.dense", x)

    def frequencies(self, dim: int) -> Tensor:
        return super().frequencies(int(dim * self.c.rope_parameters["partial_rotary_factor"]))

    def mlp(self, at: str, x: Tensor) -> Tensor:
        hidden = F.gelu(self.linear(f"{at}.dense_h_to_4h", x))
        return self.linear(f"{at}.dense_4h_to_h", hidden)


class Olmoe(Llama):
    """OLMoE: a mixture of experts, and norms of all queries and keys of a token."""

    kind = "olmoe"
    keys: ClassVar[dict[str, Any]] = {
        "hidden_size": 4 * HEAD,
        "num_key_value_heads": 2,
        "intermediate_size": 12,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    }

    def heads(self, at: str, x: Tensor) -> list[Tensor]:
        projected = [self.linear(f"{at}.{name}_proj", x) for name in "qkv"]
        for i, name in enumerate(("q_norm", "k_norm")):
            projected[i] = self.norm(f"{at}.{name}", projected[i])
        return [y.unflatten(-1, (-1, HEAD)).transpose(1, 2) for y in projected]

    def mlp(self, at: str, x: Tensor) -> Tensor:
        shares = self.shares(F.linear(x, self.weight(f"{at}.gate.weight")))
        gate_up, down = (self.weight(f"{at}.experts.{name}_proj") for name in ("gate_up", "down"))
        output = torch.zeros_like(x)
        for expert in range(len(down)):
            gate, up = F.linear(x, gate_up[expert]).chunk(2, -1)
            update = F.linear(F.silu(gate) * up, down[expert])
            output = output + shares[..., expert : expert + 1] * update
        return output

    def shares(self, scores: Tensor) -> Tensor:
        """The share of each expert: its probability, if it is one of the most probable ones."""
        shares = scores.softmax(-1)
        least = shares.topk(self.c.num_experts_per_tok).values[..., -1:]
        return shares.where(shares >= least, 0.0)


class Roberta(Llama):
    """RoBERTa: an encoder with norms after the residuals. Positions count from the padding on."""

    kind, task = "roberta", "AutoModelForMaskedLM"
    keys: ClassVar[dict[str, Any]] = {"hidden_size": 4 * HEAD, "pad_token_id": 1}

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for n in range(self.c.num_hidden_layers):
            x = self.layer(n, f"roberta.encoder.layer.{n}", x)
        x = self.norm("lm_head.layer_norm", F.gelu(self.linear("lm_head.dense", x)))
        return F.linear(x, self.weight("lm_head.decoder.weight"), self.weight("lm_head.bias"))

    def embed(self, tokens: Tensor) -> Tensor:
        at = "roberta.embeddings."
        words = self.weight(f"{at}word_embeddings.weight")[tokens]
        positions = self.weight(f"{at}position_embeddings.weight")[self.positions(tokens)]
        types = self.weight(f"{at}token_type_embeddings.weight")[0]
        return self.norm(f"{at}LayerNorm", words + positions + types)

    def positions(self, tokens: Tensor) -> Tensor:
        is_token = tokens != self.c.pad_token_id
        return self.c.pad_token_id + is_token.cumsum(1) * is_token

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.layer_norm(name, x)

    def layer(self, n: int, at: str, x: Tensor) -> Tensor:
        update = self.attention(n, f"{at}.attention", x)
        x = self.norm(f"{at}.attention.output.LayerNorm", x + update)
        return self.norm(f"{at}.output.LayerNorm", x + self.mlp(at, x))

    def heads(self, at: str, x: Tensor) -> list[Tensor]:
        projected = [self.linear(f"{at}.self.{name}", x) for name in ("query", "key", "value")]
        return [y.unflatten(-1, (-1, HEAD)).transpose(1, 2) for y in projected]

    def merged(self, at: str, x: Tensor) -> Tensor:
        return self.linear(f"{at}.output.dense", x)

    def rotated(self, x: Tensor) -> Tensor:
        return x

    def visible(self, n: int, distance: Tensor) -> Tensor:
        return torch.ones_like(distance, dtype=torch.bool)

    def mlp(self, at: str, x: Tensor) -> Tensor:
        return self.linear(f"{at}.output.dense", F.gelu(self.linear(f"{at}.intermediate.dense", x)))
