"""Ports of five models in PyTorch, and faults that are planted in them.

A port is a file of `ports`, as a stranger would write it, and it is right. A fault replaces one
text of its source. `first` is the first step of Headway's model that is wrong then, in the order in
which Headway runs its steps:

- of the forward pass, the name of a step that Headway taps: a step is wrong if it is computed
  wrongly from right inputs. Headway's keys and values have one head per kv head, so that a wrong
  repetition of them makes the scores or the context wrong. If one text makes two steps wrong, it is
  the earlier one.
- `loss`: the loss is computed wrongly from right logits.
- `gradients.NAME`: the parameter of Headway with a wrong gradient that is nearest to the loss.
  Within a layer the bias is nearer than the weight; the embedding is the last one, also if the
  output layer is tied to it.
- `updates.NAME`: the first parameter of Headway, in the order of `named_parameters`, that the
  optimizer changes wrongly from right gradients. Wrong betas show from the second step on.

The kinds that are not obvious: `packing` is how weights and heads are arranged: which matrix, which
layer, which head. `orientation` is axes that are exchanged. `cache` shows only when the tokens are
given one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

PORTS = ("gpt2", "llama", "qwen3", "mistral", "bert")
WITH_CACHE = ("gpt2", "llama", "mistral")

KINDS = (
    "orientation",
    "packing",
    "rotary",
    "mask",
    "scale",
    "norm",
    "cache",
    "positions",
    "activation",
    "tying",
    "embedding",
    "residual",
    "loss",
    "gradient",
    "optimizer",
)


@dataclass(frozen=True)
class Fault:
    """The text `old` of the source of a port, which occurs once, becomes `new`.

    first: the first step that is wrong. kind: one of KINDS.
    """

    port: str
    name: str
    old: str
    new: str
    first: str
    kind: str

    def __str__(self) -> str:
        return f"{self.port}: {self.name}"


# The sizes tell all axes apart, as far as the family allows.
_LLAMA = {
    "vocab_size": 61,
    "max_position_embeddings": 32,
    "intermediate_size": 40,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 61,
        "n_positions": 32,
        "n_embd": 24,
        "n_inner": 40,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "llama": {
        **_LLAMA,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "tie_word_embeddings": False,
    },
    "qwen3": {
        **_LLAMA,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "tie_word_embeddings": True,
    },
    "mistral": {
        **_LLAMA,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 6,
        "sliding_window": 5,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "tie_word_embeddings": False,
    },
    "bert": {
        "vocab_size": 61,
        "max_position_embeddings": 32,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "pad_token_id": None,
    },
}


def tokens() -> Tensor:
    """A batch of tokens, (3, 11). The token 0 is among the targets, because it may be padding."""
    batch = torch.randint(61, (3, 11), generator=torch.Generator().manual_seed(7))
    batch[1, 4] = 0
    return batch


def folders(root: Path) -> dict[str, Path]:
    """Write a tiny Hugging Face folder for each port into `root`, and return the folders by port.

    The weights are random and large, so that attention is not uniform; norms and biases are random.
    """
    paths = {}
    for port, keys in CONFIGS.items():
        config = transformers.AutoConfig.for_model(port, **keys)
        auto = transformers.AutoModelForCausalLM
        if port == "bert":
            auto = transformers.AutoModelForMaskedLM
        model = auto.from_config(config)
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator) / 4
        paths[port] = root / port
        model.save_pretrained(paths[port])
    return paths


def source(port: str) -> str:
    """The source of a port."""
    return (Path(__file__).parent / "ports" / f"{port}.py").read_text(encoding="utf-8")


def changed(fault: Fault) -> str:
    """The source of a port with a fault. Raises ValueError unless the text occurs exactly once."""
    right = source(fault.port)
    if (count := right.count(fault.old)) != 1:
        raise ValueError(f"{fault}: the text must occur once (found {count} times): {fault.old!r}")
    return right.replace(fault.old, fault.new)


def load(port: str, fault: Fault | None, folder: Path) -> tuple[nn.Module, ModuleType]:
    """Return the model of a port that has read a folder, and its module.

    fault: the fault in its source, or None. The module has `loss` and `optimizer`.
    """
    text = source(port) if fault is None else changed(fault)
    module = ModuleType(port)
    exec(compile(text, f"{port}.py", "exec"), module.__dict__)
    with torch.random.fork_rng(devices=[]):  # for weights that a fault does not read
        torch.manual_seed(0)
        return module.load(folder), module


def logits(model: nn.Module, batch: Tensor, *cache: list[Any]) -> Tensor:
    """Return the logits of a port."""
    output = model(batch, *cache)
    return getattr(output, "logits", output)


def one_by_one(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the logits of a port that gets the tokens one by one, with its cache."""
    cache: list[Any] = []
    columns = [logits(model, column, cache) for column in batch.split(1, dim=1)]
    return torch.cat(columns, dim=1)


_ATTENTION, _MLP = "blocks.0.attention.", "blocks.0.mlp."

_gpt2 = partial(Fault, "gpt2")
_GPT2 = [
    # Weights and heads.
    _gpt2(
        "the square output projection is not transposed",
        '"attn.c_attn.weight", "attn.c_proj.weight", ',
        '"attn.c_attn.weight", ',
        _ATTENTION + "output",
        "orientation",
    ),
    _gpt2(
        "queries and keys exchanged in the packed matrix",
        "q, k, v = self.c_attn(x)",
        "k, q, v = self.c_attn(x)",
        _ATTENTION + "queries",
        "packing",
    ),
    _gpt2(
        "keys and values exchanged in the packed matrix",
        "q, k, v = self.c_attn(x)",
        "q, v, k = self.c_attn(x)",
        _ATTENTION + "keys",
        "packing",
    ),
    _gpt2(
        "features viewed as (dim, heads)",
        "x.view(B, T, self.n_head, self.head_dim).transpose(1, 2)",
        "x.view(B, T, self.head_dim, self.n_head).permute(0, 3, 1, 2)",
        _ATTENTION + "queries",
        "packing",
    ),
    _gpt2(
        "heads split by a view without a transpose",
        "x.view(B, T, self.n_head, self.head_dim).transpose(1, 2)",
        "x.reshape(B, self.n_head, T, self.head_dim)",
        _ATTENTION + "queries",
        "packing",
    ),
    _gpt2(
        "heads merged without a transpose",
        "y.transpose(1, 2).contiguous()",
        "y.contiguous()",
        _ATTENTION + "output",
        "packing",
    ),
    _gpt2(
        "the heads of the values in reverse order",
        "v = self.split_heads(v)",
        "v = self.split_heads(v).flip(1)",
        _ATTENTION + "values",
        "packing",
    ),
    _gpt2(
        "no bias of queries, keys and values",
        "self.c_attn(x).split",
        "F.linear(x, self.c_attn.weight).split",
        _ATTENTION + "queries",
        "packing",
    ),
    _gpt2(
        "no bias of the MLP",
        "self.c_fc(x)",
        "F.linear(x, self.c_fc.weight)",
        _MLP + "hidden",
        "packing",
    ),
    _gpt2(
        "layers in reverse order",
        "enumerate(self.h)",
        "enumerate(reversed(self.h))",
        "blocks.0.attention_norm",
        "packing",
    ),
    _gpt2(
        "the first layer runs in place of every layer",
        "x = block(x, None",
        "x = self.h[0](x, None",
        "blocks.1.attention_norm",
        "packing",
    ),
    _gpt2(
        "one matrix of the second layer is not read",
        "        state[name] = weight",
        "        state[name] = model.state_dict()[name] if 'h.1.mlp.c_fc.w' in name else weight",
        "blocks.1.mlp.hidden",
        "packing",
    ),
    # Scores and the mask.
    _gpt2(
        "no causal mask",
        '        scores = scores.masked_fill(hidden, float("-inf"))\n',
        "",
        _ATTENTION + "masked",
        "mask",
    ),
    _gpt2(
        "a token sees the next one",
        "torch.tril(torch.ones(size, size, dtype=torch.bool))",
        "torch.tril(torch.ones(size, size, dtype=torch.bool), diagonal=1)",
        _ATTENTION + "masked",
        "mask",
    ),
    _gpt2(
        "a token does not see itself, and the first one sees nothing",
        "torch.tril(torch.ones(size, size, dtype=torch.bool))",
        "torch.tril(torch.ones(size, size, dtype=torch.bool), diagonal=-1)",
        _ATTENTION + "masked",
        "mask",
    ),
    _gpt2("the mask is reversed", "torch.tril(", "torch.triu(", _ATTENTION + "masked", "mask"),
    _gpt2(
        "hidden scores are 0 before the softmax",
        'float("-inf")',
        "0.0",
        _ATTENTION + "masked",
        "mask",
    ),
    _gpt2(
        "the mask is applied after the softmax",
        """scores = scores.masked_fill(hidden, float("-inf"))
        weights = torch.softmax(scores, dim=-1)""",
        "weights = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)",
        _ATTENTION + "masked",
        "mask",
    ),
    _gpt2(
        "not scaled",
        "        scores = scores / math.sqrt(self.head_dim)\n",
        "",
        _ATTENTION + "scaled",
        "scale",
    ),
    _gpt2(
        "scaled by the width",
        "math.sqrt(self.head_dim)",
        "math.sqrt(C)",
        _ATTENTION + "scaled",
        "scale",
    ),
    _gpt2(
        "multiplied by the root instead of divided",
        "scores / math.sqrt",
        "scores * math.sqrt",
        _ATTENTION + "scaled",
        "scale",
    ),
    _gpt2(
        "softmax over the queries",
        "torch.softmax(scores, dim=-1)",
        "torch.softmax(scores, dim=-2)",
        _ATTENTION + "weights",
        "orientation",
    ),
    # Norms.
    _gpt2(
        "eps outside the root",
        "torch.sqrt(variance + self.eps)",
        "(torch.sqrt(variance) + self.eps)",
        "blocks.0.attention_norm",
        "norm",
    ),
    _gpt2(
        "eps 1e-3",
        'eps = config["layer_norm_epsilon"]',
        "eps = 1e-3",
        "blocks.0.attention_norm",
        "norm",
    ),
    _gpt2(
        "unbiased variance", "unbiased=False", "unbiased=True", "blocks.0.attention_norm", "norm"
    ),
    _gpt2("the mean is not subtracted", "(x - mean)", "x", "blocks.0.attention_norm", "norm"),
    _gpt2(
        "no bias of the norms",
        "x * self.weight + self.bias",
        "x * self.weight",
        "blocks.0.attention_norm",
        "norm",
    ),
    _gpt2(
        "the norms of a layer exchanged",
        """self.attn(self.ln_1(x), past)
        x = x + self.mlp(self.ln_2(x))""",
        """self.attn(self.ln_2(x), past)
        x = x + self.mlp(self.ln_1(x))""",
        "blocks.0.attention_norm",
        "norm",
    ),
    _gpt2(
        "the norm after the MLP instead of before it",
        "self.mlp(self.ln_2(x))",
        "self.ln_2(self.mlp(x))",
        "blocks.0.mlp_norm",
        "norm",
    ),
    _gpt2("no last norm", "        x = self.ln_f(x)\n", "", "final_norm", "norm"),
    # Everything else of the forward pass.
    _gpt2(
        "exact GELU",
        "new_gelu(self.c_fc(x))",
        "F.gelu(self.c_fc(x))",
        _MLP + "hidden",
        "activation",
    ),
    _gpt2("a wrong number in GELU", "0.044715", "0.44715", _MLP + "hidden", "activation"),
    _gpt2(
        "positions begin at 1",
        "torch.arange(start, start + tokens.shape[1], device",
        "torch.arange(start + 1, start + 1 + tokens.shape[1], device",
        "embedded",
        "positions",
    ),
    _gpt2(
        "no position embedding",
        "self.wte(tokens) + self.wpe(positions)",
        "self.wte(tokens)",
        "embedded",
        "positions",
    ),
    _gpt2(
        "the embedding is scaled by the root of the width",
        "self.wte(tokens) +",
        "self.wte(tokens) * math.sqrt(self.wte.embedding_dim) +",
        "embedded",
        "embedding",
    ),
    _gpt2(
        "the output layer is a copy of the embedding",
        "        self.lm_head.weight = self.wte.weight\n",
        "",
        "gradients.embedding.weight",
        "tying",
    ),
    _gpt2(
        "the output layer is off by one token",
        "return self.lm_head(x)",
        "return F.linear(x, self.wte.weight.roll(1, 0))",
        "logits",
        "tying",
    ),
    _gpt2(
        "no residual around attention",
        "x = x + self.attn(",
        "x = self.attn(",
        "blocks.0.after_attention",
        "residual",
    ),
    _gpt2(
        "the residual of the MLP is normalized",
        "x = x + self.mlp(self.ln_2(x))",
        "x = self.ln_2(x)\n        x = x + self.mlp(x)",
        "blocks.0.after_mlp",
        "residual",
    ),
    # The cache.
    _gpt2(
        "positions restart at 0 with every token",
        "start = cache[0][0].shape[2]",
        "start = 0",
        "embedded",
        "cache",
    ),
    _gpt2(
        "the mask does not begin at the token's row",
        "self.mask[S - T : S, :S]",
        "self.mask[:T, :S]",
        _ATTENTION + "masked",
        "cache",
    ),
    _gpt2(
        "new keys are put before the old ones",
        "torch.cat([past[0], k], dim=2)",
        "torch.cat([k, past[0]], dim=2)",
        _ATTENTION + "keys",
        "cache",
    ),
    _gpt2(
        "the values in the cache are the keys",
        "v = torch.cat([past[1], v], dim=2)",
        "v = torch.cat([past[0], v], dim=2)",
        _ATTENTION + "values",
        "cache",
    ),
    # Training.
    _gpt2(
        "targets are not shifted",
        """logits = model(tokens)[:, :-1]
    targets = tokens[:, 1:]""",
        """logits = model(tokens)
    targets = tokens""",
        "loss",
        "loss",
    ),
    _gpt2(
        "the sum instead of the mean",
        "targets.reshape(-1))",
        'targets.reshape(-1), reduction="sum")',
        "loss",
        "loss",
    ),
    _gpt2(
        "the token 0 is taken for padding",
        "targets.reshape(-1))",
        "targets.reshape(-1), ignore_index=0)",
        "loss",
        "loss",
    ),
    _gpt2(
        "the norm before attention is detached",
        "self.ln_1(x)",
        "self.ln_1(x).detach()",
        "gradients.blocks.1.attention_norm.bias",
        "gradient",
    ),
    _gpt2(
        "the output of attention is detached",
        "return self.c_proj(y)",
        "return self.c_proj(y).detach()",
        "gradients.blocks.1.attention.output.bias",
        "gradient",
    ),
    _gpt2(
        "the embeddings are detached",
        "self.wte(tokens) + self.wpe(positions)",
        "(self.wte(tokens) + self.wpe(positions)).detach()",
        "gradients.position_embedding.weight",
        "gradient",
    ),
    _gpt2(
        "a matrix is frozen",
        "    return model.eval()",
        "    model.h[0].mlp.c_fc.weight.requires_grad_(False)\n    return model.eval()",
        "gradients.blocks.0.mlp.up.weight",
        "gradient",
    ),
    _gpt2(
        "weight decay of norms and biases",
        '"weight_decay": 0.0',
        '"weight_decay": 0.1',
        "updates.blocks.0.attention_norm.weight",
        "optimizer",
    ),
    _gpt2("the default betas", ", betas=(0.9, 0.95)", "", "updates.embedding.weight", "optimizer"),
    _gpt2("another learning rate", "lr=1e-3", "lr=3e-4", "updates.embedding.weight", "optimizer"),
]

FAULTS: list[Fault] = [*_GPT2]
