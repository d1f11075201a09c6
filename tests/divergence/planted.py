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


def folders(root: Path, only: tuple[str, ...] = PORTS) -> dict[str, Path]:
    """Write a tiny Hugging Face folder for each port into `root`, and return the folders by port.

    The weights are random and large, so that attention is not uniform; norms and biases are random.
    """
    paths = {}
    for port in only:
        keys = CONFIGS[port]
        config = transformers.AutoConfig.for_model(port, **keys)
        auto = transformers.AutoModelForCausalLM
        if port == "bert":
            auto = transformers.AutoModelForMaskedLM
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(11)
            model = auto.from_config(config)
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) / 4
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


def one_by_one(model: nn.Module, batch: Tensor, size: int = 1) -> Tensor:
    """Return the logits of a port that gets `size` tokens at a time, with its cache."""
    cache: list[Any] = []
    return torch.cat([logits(model, part, cache) for part in batch.split(size, dim=1)], dim=1)


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

_llama = partial(Fault, "llama")
_LLAMA = [
    # Weights and heads.
    _llama(
        "the square output projection is transposed",
        '            state[f"layers.{n}.{ours}.weight"] = w',
        '            state[f"layers.{n}.{ours}.weight"] = w.T if ours == "attention.wo" else w',
        _ATTENTION + "output",
        "orientation",
    ),
    _llama(
        "the square matrix of the queries is transposed",
        'w = permute(w, args["num_attention_heads"])',
        'w = permute(w.T, args["num_attention_heads"])',
        _ATTENTION + "unrotated_queries",
        "orientation",
    ),
    _llama(
        "keys and values exchanged",
        '    "self_attn.k_proj": "attention.wk",\n    "self_attn.v_proj": "attention.wv",',
        '    "self_attn.v_proj": "attention.wk",\n    "self_attn.k_proj": "attention.wv",',
        _ATTENTION + "unrotated_keys",
        "packing",
    ),
    _llama(
        "features of the queries viewed as (dim, heads)",
        "self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)",
        "self.wq(x).view(bsz, seqlen, self.head_dim, self.n_heads).transpose(2, 3).contiguous()",
        _ATTENTION + "unrotated_queries",
        "packing",
    ),
    _llama(
        "keys and values repeated as 0, 1, 0, 1",
        "x[:, :, :, None, :].expand(bs, slen, n_kv_heads, n_rep, head_dim)",
        "x[:, :, None, :, :].expand(bs, slen, n_rep, n_kv_heads, head_dim)",
        _ATTENTION + "scores",
        "packing",
    ),
    _llama(
        "values repeated as 0, 1, 0, 1",
        "values = repeat_kv(xv, self.n_heads // self.n_kv_heads)",
        "values = xv.repeat(1, 1, self.n_heads // self.n_kv_heads, 1)",
        _ATTENTION + "context",
        "packing",
    ),
    _llama(
        "heads merged without a transpose",
        "out.transpose(1, 2).reshape(bsz, seqlen, -1)",
        "out.reshape(bsz, seqlen, -1)",
        _ATTENTION + "output",
        "packing",
    ),
    _llama(
        "gate and up exchanged",
        "silu(self.w1(x)) * self.w3(x)",
        "silu(self.w3(x)) * self.w1(x)",
        _MLP + "hidden",
        "packing",
    ),
    _llama(
        "the second layer gets the weights of the first",
        'weights[f"model.layers.{n}.{theirs}.weight"]',
        'weights[f"model.layers.{0 if n == 1 else n}.{theirs}.weight"]',
        "blocks.1.attention_norm",
        "packing",
    ),
    _llama(
        "layers in reverse order",
        'weights[f"model.layers.{n}.{theirs}.weight"]',
        "weights[f\"model.layers.{args['num_hidden_layers'] - 1 - n}.{theirs}.weight\"]",
        "blocks.0.attention_norm",
        "packing",
    ),
    # Rotary positions.
    _llama(
        "the weights of queries and keys are not permuted",
        "return w.view(n_heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)",
        "return w",
        _ATTENTION + "queries",
        "rotary",
    ),
    _llama(
        "the weights of the keys are not permuted",
        'w = permute(w, args["num_key_value_heads"])',
        "w = w.clone()",
        _ATTENTION + "keys",
        "rotary",
    ),
    _llama(
        "the weights are permuted in the other direction",
        "w.view(n_heads, 2, -1, w.shape[1])",
        "w.view(n_heads, -1, 2, w.shape[1])",
        _ATTENTION + "queries",
        "rotary",
    ),
    _llama(
        "the weights of the keys are permuted for the number of query heads",
        'w = permute(w, args["num_key_value_heads"])',
        'w = permute(w, args["num_attention_heads"])',
        _ATTENTION + "keys",
        "rotary",
    ),
    _llama(
        "the rotation has the wrong sign",
        "pairs * freqs_cis)",
        "pairs * freqs_cis.conj())",
        _ATTENTION + "queries",
        "rotary",
    ),
    _llama(
        "the default base",
        'theta = args["rope_parameters"]["rope_theta"]',
        'theta = args.get("rope_theta", 10000.0)',
        _ATTENTION + "queries",
        "rotary",
    ),
    _llama(
        "frequencies over the width instead of the size of a head",
        "dtype=torch.float64) / dim))",
        "dtype=torch.float64) / (4 * dim)))",
        _ATTENTION + "queries",
        "rotary",
    ),
    _llama(
        "keys are not rotated",
        "        xk = apply_rotary_emb(xk, freqs_cis)\n",
        "",
        _ATTENTION + "keys",
        "rotary",
    ),
    _llama(
        "queries are not rotated",
        "        xq = apply_rotary_emb(xq, freqs_cis)\n",
        "",
        _ATTENTION + "queries",
        "rotary",
    ),
    _llama(
        "values are rotated too",
        "        xk = apply_rotary_emb(xk, freqs_cis)\n",
        "        xk, xv = apply_rotary_emb(xk, freqs_cis), apply_rotary_emb(xv, freqs_cis)\n",
        _ATTENTION + "values",
        "rotary",
    ),
    # Scores and the mask.
    _llama(
        "no causal mask", "is_causal=past == 0", "is_causal=False", _ATTENTION + "masked", "mask"
    ),
    _llama(
        "scaled twice",
        "is_causal=past == 0)",
        "is_causal=past == 0, scale=1 / self.head_dim)",
        _ATTENTION + "scaled",
        "scale",
    ),
    _llama(
        "not scaled",
        "is_causal=past == 0)",
        "is_causal=past == 0, scale=1.0)",
        _ATTENTION + "scaled",
        "scale",
    ),
    _llama(
        "scaled by the width",
        "is_causal=past == 0)",
        "is_causal=past == 0, scale=x.shape[-1] ** -0.5)",
        _ATTENTION + "scaled",
        "scale",
    ),
    # Norms.
    _llama(
        "the weight of the norms plus 1",
        "+ self.eps) * self.weight",
        "+ self.eps) * (1 + self.weight)",
        "blocks.0.attention_norm",
        "norm",
    ),
    _llama(
        "the variance instead of the mean square",
        "x.pow(2).mean(-1, keepdim=True)",
        "x.var(-1, keepdim=True, unbiased=False)",
        "blocks.0.attention_norm",
        "norm",
    ),
    _llama(
        "eps 1e-6 instead of 1e-5",
        "self.eps = eps",
        "self.eps = 1e-6",
        "blocks.0.attention_norm",
        "norm",
    ),
    _llama(
        "no norm before the MLP",
        "self.feed_forward(self.ffn_norm(h))",
        "self.feed_forward(h)",
        "blocks.0.mlp_norm",
        "norm",
    ),
    _llama(
        "the norm before the MLP gets the input of the layer",
        "self.ffn_norm(h)",
        "self.ffn_norm(x)",
        "blocks.0.mlp_norm",
        "norm",
    ),
    _llama(
        "the norms of a layer exchanged",
        '    "input_layernorm": "attention_norm",\n    "post_attention_layernorm": "ffn_norm",',
        '    "input_layernorm": "ffn_norm",\n    "post_attention_layernorm": "attention_norm",',
        "blocks.0.attention_norm",
        "norm",
    ),
    _llama("no last norm", "self.output(self.norm(h))", "self.output(h)", "final_norm", "norm"),
    # Everything else of the forward pass.
    _llama(
        "GELU instead of SiLU",
        "silu(self.w1(x))",
        "nn.functional.gelu(self.w1(x))",
        _MLP + "hidden",
        "activation",
    ),
    _llama(
        "the activation of the product",
        "silu(self.w1(x)) * self.w3(x)",
        "silu(self.w1(x) * self.w3(x))",
        _MLP + "hidden",
        "activation",
    ),
    _llama(
        "the residual of the MLP is the input of the layer",
        "return h + self.feed_forward",
        "return x + self.feed_forward",
        "blocks.0.after_mlp",
        "residual",
    ),
    _llama(
        "the residual around attention is normalized",
        "h = x + self.attention(self.attention_norm(x), freqs_cis, cache)",
        "h = self.attention_norm(x)\n        h = h + self.attention(h, freqs_cis, cache)",
        "blocks.0.after_attention",
        "residual",
    ),
    _llama(
        "the output layer is tied to the embedding",
        '"output.weight": weights["lm_head.weight"]',
        '"output.weight": weights["model.embed_tokens.weight"]',
        "logits",
        "tying",
    ),
    # The cache.
    _llama(
        "positions restart at 0 with every token",
        'start_pos = cache[0]["k"].shape[1]',
        "start_pos = 0",
        _ATTENTION + "queries",
        "cache",
    ),
    _llama(
        "keys are not rotated if there is a cache",
        "        xk = apply_rotary_emb(xk, freqs_cis)\n",
        "        xk = apply_rotary_emb(xk, freqs_cis) if cache is None else xk\n",
        _ATTENTION + "keys",
        "cache",
    ),
    _llama(
        "keys of the cache are rotated again",
        'torch.cat((cache["k"], xk), dim=1)',
        'torch.cat((apply_rotary_emb(cache["k"], freqs_cis), xk), dim=1)',
        _ATTENTION + "keys",
        "cache",
    ),
    _llama(
        "the last key and value are missing",
        'cache["k"], cache["v"] = xk, xv',
        'cache["k"], cache["v"], xk, xv = xk, xv, cache.get("k", xk), cache.get("v", xv)',
        _ATTENTION + "keys",
        "cache",
    ),
    _llama(
        "the causal mask begins at the first key",
        "is_causal=past == 0",
        "is_causal=mask is None",
        _ATTENTION + "masked",
        "cache",
    ),
    # Training.
    _llama(
        "targets are not shifted",
        "tokens[:, 1:].flatten())",
        "tokens[:, :-1].flatten())",
        "loss",
        "loss",
    ),
    _llama(
        "the sum over the tokens of a text",
        "tokens[:, 1:].flatten())",
        'tokens[:, 1:].flatten(), reduction="sum") / len(tokens)',
        "loss",
        "loss",
    ),
    _llama(
        "keys are detached",
        "apply_rotary_emb(xk, freqs_cis)",
        "apply_rotary_emb(xk.detach(), freqs_cis)",
        "gradients.blocks.2.attention.k.weight",
        "gradient",
    ),
    _llama(
        "the gate is detached",
        "silu(self.w1(x))",
        "silu(self.w1(x)).detach()",
        "gradients.blocks.2.mlp.gate.weight",
        "gradient",
    ),
    _llama(
        "the root of the norms is detached",
        "torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)",
        "torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).detach()",
        "gradients.blocks.2.mlp.down.weight",
        "gradient",
    ),
    _llama(
        "the embedding is detached",
        "h = self.tok_embeddings(tokens)",
        "h = self.tok_embeddings(tokens).detach()",
        "gradients.embedding.weight",
        "gradient",
    ),
    _llama(
        "L2 in Adam instead of weight decay",
        "torch.optim.AdamW(",
        "torch.optim.Adam(",
        "updates.embedding.weight",
        "optimizer",
    ),
    _llama(
        "the default weight decay",
        "        weight_decay=0.1,\n",
        "",
        "updates.embedding.weight",
        "optimizer",
    ),
    _llama(
        "no weight decay",
        "groups[p.ndim > 1]",
        "groups[p.ndim > 2]",
        "updates.embedding.weight",
        "optimizer",
    ),
    _llama(
        "a large eps of AdamW",
        "lr=1e-3,",
        "lr=1e-3,\n        eps=1e-3,",
        "updates.embedding.weight",
        "optimizer",
    ),
]

_qwen3 = partial(Fault, "qwen3")
_QWEN3 = [
    # Weights and heads.
    _qwen3(
        "features of the queries viewed as (dim, heads)",
        'get("self_attn.q_proj").unflatten(0, (-1, dim))',
        'get("self_attn.q_proj").unflatten(0, (dim, -1)).transpose(0, 1)',
        _ATTENTION + "unnormalized_queries",
        "packing",
    ),
    _qwen3(
        "features of the output projection viewed as (dim, heads)",
        'get("self_attn.o_proj").unflatten(1, (-1, dim))',
        'get("self_attn.o_proj").unflatten(1, (dim, -1)).transpose(1, 2)',
        _ATTENTION + "output",
        "packing",
    ),
    _qwen3(
        "the heads of the queries in reverse order",
        'get("self_attn.q_proj").unflatten(0, (-1, dim))',
        'get("self_attn.q_proj").unflatten(0, (-1, dim)).flip(0)',
        _ATTENTION + "unnormalized_queries",
        "packing",
    ),
    _qwen3(
        "keys and values exchanged",
        'layer.w_k.copy_(get("self_attn.k_proj").unflatten(0, (-1, dim)))\n'
        '        layer.w_v.copy_(get("self_attn.v_proj").unflatten(0, (-1, dim)))',
        'layer.w_k.copy_(get("self_attn.v_proj").unflatten(0, (-1, dim)))\n'
        '        layer.w_v.copy_(get("self_attn.k_proj").unflatten(0, (-1, dim)))',
        _ATTENTION + "unnormalized_keys",
        "packing",
    ),
    _qwen3(
        "keys repeated as 0, 1, 0, 1",
        "k = k.repeat_interleave(self.share, dim=2)",
        "k = k.repeat(1, 1, self.share, 1)",
        _ATTENTION + "scores",
        "packing",
    ),
    _qwen3(
        "values repeated as 0, 1, 0, 1",
        "v = v.repeat_interleave(self.share, dim=2)",
        "v = v.repeat(1, 1, self.share, 1)",
        _ATTENTION + "context",
        "packing",
    ),
    _qwen3(
        "gate and up exchanged",
        "hidden = gate * torch.sigmoid(gate) * up",
        "hidden = up * torch.sigmoid(up) * gate",
        _MLP + "hidden",
        "packing",
    ),
    _qwen3(
        "one matrix is not read",
        '        layer.w_up.copy_(get("mlp.up_proj"))\n',
        "",
        _MLP + "hidden",
        "packing",
    ),
    _qwen3(
        "every layer gets the weights of the first",
        'prefix=f"model.layers.{n}."',
        'prefix="model.layers.0."',
        "blocks.1.attention_norm",
        "packing",
    ),
    # Rotary positions.
    _qwen3(
        "rotary before QK-norm",
        "        q = rms_norm(q, self.q_norm, self.eps)\n"
        "        k = rms_norm(k, self.k_norm, self.eps)\n"
        "        q = rope(q, self.theta)\n"
        "        k = rope(k, self.theta)\n",
        "        q = rope(q, self.theta)\n"
        "        k = rope(k, self.theta)\n"
        "        q = rms_norm(q, self.q_norm, self.eps)\n"
        "        k = rms_norm(k, self.k_norm, self.eps)\n",
        _ATTENTION + "unrotated_queries",
        "rotary",
    ),
    _qwen3(
        "interleaved pairs with the angles of halves",
        "first, second = x.chunk(2, dim=-1)\n    return torch.cat((-second, first), dim=-1)",
        "first, second = x[..., ::2], x[..., 1::2]\n"
        "    return torch.stack((-second, first), dim=-1).reshape(x.shape)",
        _ATTENTION + "queries",
        "rotary",
    ),
    _qwen3(
        "interleaved angles with pairs of halves",
        "torch.cat([position[:, None] * inv_freq] * 2, dim=-1)[:, None, :]",
        "(position[:, None] * inv_freq).repeat_interleave(2, dim=-1)[:, None, :]",
        _ATTENTION + "queries",
        "rotary",
    ),
    _qwen3(
        "the sine has the wrong sign",
        "+ rotate_half(x) *",
        "- rotate_half(x) *",
        _ATTENTION + "queries",
        "rotary",
    ),
    _qwen3(
        "no sign in rotate_half",
        "torch.cat((-second, first)",
        "torch.cat((second, first)",
        _ATTENTION + "queries",
        "rotary",
    ),
    _qwen3(
        "the base of another model",
        'cfg["rope_parameters"]["rope_theta"]',
        "1_000_000.0",
        _ATTENTION + "queries",
        "rotary",
    ),
    _qwen3(
        "keys are not rotated",
        "        k = rope(k, self.theta)\n",
        "",
        _ATTENTION + "keys",
        "rotary",
    ),
    # Scores and the mask.
    _qwen3("a token does not see itself", "j <= i", "j < i", _ATTENTION + "masked", "mask"),
    _qwen3("a token sees the next one", "j <= i", "j <= i + 1", _ATTENTION + "masked", "mask"),
    _qwen3("the mask is reversed", "j <= i", "j >= i", _ATTENTION + "masked", "mask"),
    _qwen3(
        "hidden scores are -1",
        "torch.finfo(scores.dtype).min",
        "-1.0",
        _ATTENTION + "masked",
        "mask",
    ),
    _qwen3(
        "hidden scores are tiny instead of very negative",
        "torch.finfo(scores.dtype).min",
        "torch.finfo(scores.dtype).tiny",
        _ATTENTION + "masked",
        "mask",
    ),
    _qwen3(
        "the branches of the mask exchanged",
        "torch.where(j <= i, scores, torch.finfo(scores.dtype).min)",
        "torch.where(j <= i, torch.finfo(scores.dtype).min, scores)",
        _ATTENTION + "masked",
        "mask",
    ),
    _qwen3("not scaled", " * q.shape[-1] ** -0.5", "", _ATTENTION + "scaled", "scale"),
    _qwen3(
        "scaled by the width",
        "q.shape[-1] ** -0.5",
        "x.shape[-1] ** -0.5",
        _ATTENTION + "scaled",
        "scale",
    ),
    _qwen3(
        "multiplied by the root instead of divided",
        "q.shape[-1] ** -0.5",
        "q.shape[-1] ** 0.5",
        _ATTENTION + "scaled",
        "scale",
    ),
    _qwen3(
        "queries and keys exchanged in the scores",
        "bihd,bjhd->bhij",
        "bihd,bjhd->bhji",
        _ATTENTION + "scores",
        "orientation",
    ),
    _qwen3(
        "the weights are transposed before the values",
        "bhij,bjhd->bihd",
        "bhji,bjhd->bihd",
        _ATTENTION + "context",
        "orientation",
    ),
    _qwen3(
        "softmax over the heads",
        "scores.softmax(dim=-1)",
        "scores.softmax(dim=1)",
        _ATTENTION + "weights",
        "orientation",
    ),
    # Norms.
    _qwen3(
        "no QK-norm of the queries",
        "        q = rms_norm(q, self.q_norm, self.eps)\n",
        "",
        _ATTENTION + "unrotated_queries",
        "norm",
    ),
    _qwen3(
        "no QK-norm of the keys",
        "        k = rms_norm(k, self.k_norm, self.eps)\n",
        "",
        _ATTENTION + "unrotated_keys",
        "norm",
    ),
    _qwen3(
        "the weights of QK-norm exchanged",
        'layer.q_norm.copy_(get("self_attn.q_norm"))\n'
        '        layer.k_norm.copy_(get("self_attn.k_norm"))',
        'layer.q_norm.copy_(get("self_attn.k_norm"))\n'
        '        layer.k_norm.copy_(get("self_attn.q_norm"))',
        _ATTENTION + "unrotated_queries",
        "norm",
    ),
    _qwen3(
        "QK-norm over all heads at once",
        "q = rms_norm(q, self.q_norm, self.eps)",
        "q = rms_norm(q.flatten(2), self.q_norm.repeat(q.shape[2]), self.eps).view_as(q)",
        _ATTENTION + "unrotated_queries",
        "norm",
    ),
    _qwen3(
        "eps 1e-5 instead of 1e-6",
        'self.eps, self.theta = cfg["rms_norm_eps"],',
        "self.eps, self.theta = 1e-5,",
        "blocks.0.attention_norm",
        "norm",
    ),
    _qwen3(
        "eps 1e-3 of the last norm",
        'self.eps = cfg["rms_norm_eps"]',
        "self.eps = 1e-3",
        "final_norm",
        "norm",
    ),
    _qwen3(
        "the sum instead of the mean of the squares",
        "(x * x).mean(",
        "(x * x).sum(",
        "blocks.0.attention_norm",
        "norm",
    ),
    _qwen3(
        "the norm before attention is used twice",
        "rms_norm(x, self.norm2, self.eps)",
        "rms_norm(x, self.norm1, self.eps)",
        "blocks.0.mlp_norm",
        "norm",
    ),
    _qwen3(
        "no last norm", "        x = rms_norm(x, self.norm, self.eps)\n", "", "final_norm", "norm"
    ),
    # Everything else of the forward pass.
    _qwen3(
        "GELU instead of SiLU",
        "gate * torch.sigmoid(gate)",
        "nn.functional.gelu(gate)",
        _MLP + "hidden",
        "activation",
    ),
    _qwen3(
        "a sigmoid instead of SiLU",
        "gate * torch.sigmoid(gate)",
        "torch.sigmoid(gate)",
        _MLP + "hidden",
        "activation",
    ),
    _qwen3(
        "quick GELU instead of SiLU",
        "torch.sigmoid(gate)",
        "torch.sigmoid(1.702 * gate)",
        _MLP + "hidden",
        "activation",
    ),
    _qwen3(
        "the embedding is scaled by the root of the width",
        "x = self.embed[tokens]",
        "x = self.embed[tokens] * self.embed.shape[1] ** 0.5",
        "embedded",
        "embedding",
    ),
    _qwen3(
        "the logits are scaled as in T5",
        'return einsum("btc,vc->btv", x, self.embed)',
        'return einsum("btc,vc->btv", x, self.embed) * x.shape[-1] ** -0.5',
        "logits",
        "tying",
    ),
    _qwen3(
        "the output layer does not train the embedding",
        "x, self.embed)",
        "x, self.embed.detach())",
        "gradients.embedding.weight",
        "tying",
    ),
    _qwen3(
        "the residual of the MLP is missing",
        "return x + self.feed_forward",
        "return self.feed_forward",
        "blocks.0.after_mlp",
        "residual",
    ),
    _qwen3(
        "attention and MLP in parallel",
        "        x = x + self.attend(rms_norm(x, self.norm1, self.eps))\n        return x +",
        "        y = x + self.attend(rms_norm(x, self.norm1, self.eps))\n        return y +",
        "blocks.0.mlp_norm",
        "residual",
    ),
    # Training.
    _qwen3("targets are not shifted", "log_probs[:, :-1]", "log_probs[:, 1:]", "loss", "loss"),
    _qwen3(
        "the sum over the tokens of a text",
        ".gather(-1, target).mean()",
        ".gather(-1, target).sum(1).mean()",
        "loss",
        "loss",
    ),
    _qwen3(
        "the softmax of the loss over the tokens",
        "log_softmax(dim=-1)",
        "log_softmax(dim=1)",
        "loss",
        "loss",
    ),
    _qwen3(
        "values are detached",
        "v = v.repeat_interleave(",
        "v = v.detach().repeat_interleave(",
        "gradients.blocks.1.attention.v.weight",
        "gradient",
    ),
    _qwen3(
        "the hidden features of the MLP are detached",
        '"btf,cf->btc", hidden,',
        '"btf,cf->btc", hidden.detach(),',
        "gradients.blocks.1.mlp.up.weight",
        "gradient",
    ),
    _qwen3(
        "the weight of a norm is detached",
        "rms_norm(q, self.q_norm, self.eps)",
        "rms_norm(q, self.q_norm.detach(), self.eps)",
        "gradients.blocks.1.attention.q_norm.weight",
        "gradient",
    ),
    _qwen3(
        "the embedding of the tokens is detached",
        "x = self.embed[tokens]",
        "x = self.embed[tokens].detach()",
        "gradients.embedding.weight",
        "gradient",
    ),
    _qwen3(
        "parameters with three axes are not trained",
        "p.ndim >= 2",
        "p.ndim == 2",
        "updates.blocks.0.attention.q.weight",
        "optimizer",
    ),
    _qwen3(
        "betas in the wrong order",
        "betas=(0.9, 0.95)",
        "betas=(0.95, 0.9)",
        "updates.embedding.weight",
        "optimizer",
    ),
    _qwen3(
        "weight decay of norms",
        '{"params": vectors, "weight_decay": 0.0}',
        '{"params": vectors}',
        "updates.blocks.0.attention_norm.weight",
        "optimizer",
    ),
]

_mistral = partial(Fault, "mistral")
_MISTRAL = [
    # Weights and heads.
    _mistral(
        "the square output projection is transposed",
        'file[there + "self_attn.o_proj.weight"]',
        'file[there + "self_attn.o_proj.weight"].T',
        _ATTENTION + "output",
        "orientation",
    ),
    _mistral(
        "the square matrix of the queries is transposed",
        "torch.cat(projections)",
        "torch.cat([projections[0].T, *projections[1:]])",
        _ATTENTION + "unrotated_queries",
        "orientation",
    ),
    _mistral(
        "keys and values exchanged in the packed matrix",
        'for name in "qkv"',
        'for name in "qvk"',
        _ATTENTION + "unrotated_keys",
        "packing",
    ),
    _mistral(
        "values before queries in the packed matrix",
        'for name in "qkv"',
        'for name in "vqk"',
        _ATTENTION + "unrotated_queries",
        "packing",
    ),
    _mistral(
        "features viewed as (dim, heads)",
        "self.qkv(x).view(batch, length, -1, self.head_dim)",
        "self.qkv(x).view(batch, length, self.head_dim, -1).transpose(2, 3)",
        _ATTENTION + "unrotated_queries",
        "packing",
    ),
    _mistral(
        "queries in groups of the wrong heads",
        "q = q.view(batch, length, self.kv_heads, -1, self.head_dim)",
        "q = q.view(batch, length, -1, self.kv_heads, self.head_dim).transpose(2, 3)",
        _ATTENTION + "scores",
        "packing",
    ),
    _mistral(
        "values of the other head",
        "weights @ v.permute",
        "weights @ v.flip(2).permute",
        _ATTENTION + "context",
        "packing",
    ),
    _mistral(
        "heads merged in the wrong order",
        "context.permute(0, 3, 1, 2, 4)",
        "context.permute(0, 3, 2, 1, 4)",
        _ATTENTION + "output",
        "packing",
    ),
    _mistral(
        "gate and up exchanged in the packed matrix",
        'both = [file[there + "mlp.gate_proj.weight"], file[there + "mlp.up_proj.weight"]]',
        'both = [file[there + "mlp.up_proj.weight"], file[there + "mlp.gate_proj.weight"]]',
        _MLP + "hidden",
        "packing",
    ),
    _mistral(
        "gate and up are read as interleaved",
        "gate, up = self.gate_up(x).chunk(2, dim=-1)",
        "gate, up = self.gate_up(x).unflatten(-1, (-1, 2)).unbind(-1)",
        _MLP + "hidden",
        "packing",
    ),
    _mistral(
        "every layer gets the weights of the first",
        'f"model.layers.{index}."',
        '"model.layers.0."',
        "blocks.1.attention_norm",
        "packing",
    ),
    # Rotary positions.
    _mistral(
        "the sine has the wrong sign",
        "[left * cos - right * sin, right * cos + left * sin]",
        "[left * cos + right * sin, right * cos - left * sin]",
        _ATTENTION + "queries",
        "rotary",
    ),
    _mistral(
        "sine and cosine exchanged",
        "cos = self.cos[positions][:, None, :]\n        sin = self.sin[positions][:, None, :]",
        "cos = self.sin[positions][:, None, :]\n        sin = self.cos[positions][:, None, :]",
        _ATTENTION + "queries",
        "rotary",
    ),
    _mistral(
        "interleaved instead of halves",
        "left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]",
        "left, right = x[..., ::2], x[..., 1::2]",
        _ATTENTION + "queries",
        "rotary",
    ),
    _mistral(
        "the default base",
        'config["rope_parameters"]["rope_theta"]',
        "10000.0",
        _ATTENTION + "queries",
        "rotary",
    ),
    _mistral(
        "every frequency is half as high",
        "1.0 / base **",
        "0.5 / base **",
        _ATTENTION + "queries",
        "rotary",
    ),
    _mistral(
        "only the queries are rotated",
        "        k = self.rotary(k, positions)\n",
        "",
        _ATTENTION + "keys",
        "rotary",
    ),
    _mistral(
        "positions of the keys are off by one",
        "self.rotary(k, positions)",
        "self.rotary(k, positions + 1)",
        _ATTENTION + "keys",
        "positions",
    ),
    _mistral(
        "positions of the queries are off by one",
        "self.rotary(q, positions)",
        "self.rotary(q, positions + 1)",
        _ATTENTION + "queries",
        "positions",
    ),
    _mistral(
        "positions count by two",
        "torch.arange(tokens.shape[1]) + seen",
        "2 * torch.arange(tokens.shape[1]) + seen",
        _ATTENTION + "queries",
        "positions",
    ),
    # Scores and the mask.
    _mistral(
        "the window is one token too long",
        "distance < self.window",
        "distance <= self.window",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "the window is one token too short",
        "distance < self.window",
        "distance < self.window - 1",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "no window",
        "(distance >= 0) & (distance < self.window)",
        "distance >= 0",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "a window without causal mask",
        "(distance >= 0) & (distance < self.window)",
        "distance.abs() < self.window",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "the window is in the future",
        "positions[:, None] - key_positions[None, :]",
        "key_positions[None, :] - positions[:, None]",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "the meaning of the mask is reversed",
        "masked_fill(~visible",
        "masked_fill(visible",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral("hidden scores are 10 lower", "-math.inf", "-10.0", _ATTENTION + "masked", "mask"),
    _mistral(
        "a boolean mask is added to the scores",
        "scores + bias",
        "scores + visible",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "the mask is multiplied with the scores",
        "scores + bias",
        "scores * visible",
        _ATTENTION + "masked",
        "mask",
    ),
    _mistral(
        "divided by the size of a head instead of its root",
        "self.head_dim**0.5",
        "self.head_dim",
        _ATTENTION + "scaled",
        "scale",
    ),
    _mistral(
        "multiplied by the root instead of divided",
        "scores / self.head_dim**0.5",
        "scores * self.head_dim**0.5",
        _ATTENTION + "scaled",
        "scale",
    ),
    _mistral(
        "scaled by the width",
        "self.head_dim**0.5",
        "x.shape[-1] ** 0.5",
        _ATTENTION + "scaled",
        "scale",
    ),
    _mistral(
        "softmax over the queries",
        "F.softmax(scores + bias, dim=-1)",
        "F.softmax(scores + bias, dim=-2)",
        _ATTENTION + "weights",
        "orientation",
    ),
    # Norms.
    _mistral(
        "eps outside the root",
        "torch.sqrt(mean_square + self.eps)",
        "(torch.sqrt(mean_square) + self.eps)",
        "blocks.0.attention_norm",
        "norm",
    ),
    _mistral(
        "LayerNorm instead of RMSNorm",
        "        mean_square = torch.mean(x**2",
        "        x = x - x.mean(-1, keepdim=True)\n        mean_square = torch.mean(x**2",
        "blocks.0.attention_norm",
        "norm",
    ),
    _mistral(
        "the mean over the tokens",
        "torch.mean(x**2, dim=-1",
        "torch.mean(x**2, dim=1",
        "blocks.0.attention_norm",
        "norm",
    ),
    _mistral(
        "no weight of the norms",
        "+ self.eps) * self.scale",
        "+ self.eps)",
        "blocks.0.attention_norm",
        "norm",
    ),
    _mistral(
        "the norm after the MLP instead of before it",
        "self.mlp(self.mlp_norm(x))",
        "self.mlp_norm(self.mlp(x))",
        "blocks.0.mlp_norm",
        "norm",
    ),
    _mistral("no last norm", "self.head(self.final_norm(x))", "self.head(x)", "final_norm", "norm"),
    _mistral(
        "the last norm has the weight of another norm",
        'file["model.norm.weight"]',
        'file["model.layers.1.post_attention_layernorm.weight"]',
        "final_norm",
        "norm",
    ),
    # Everything else of the forward pass.
    _mistral("GELU instead of SiLU", "F.silu(gate)", "F.gelu(gate)", _MLP + "hidden", "activation"),
    _mistral("ReLU instead of SiLU", "F.silu(gate)", "F.relu(gate)", _MLP + "hidden", "activation"),
    _mistral("no activation", "F.silu(gate)", "gate", _MLP + "hidden", "activation"),
    _mistral(
        "tokens are off by one",
        "self.embedding(tokens)",
        "self.embedding((tokens + 1) % self.embedding.num_embeddings)",
        "embedded",
        "embedding",
    ),
    _mistral(
        "the embedding is normalized",
        "x = self.embedding(tokens)",
        "x = F.normalize(self.embedding(tokens), dim=-1)",
        "embedded",
        "embedding",
    ),
    _mistral(
        "the residual is added twice",
        "x = x + self.attention(",
        "x = x + x + self.attention(",
        "blocks.0.after_attention",
        "residual",
    ),
    _mistral(
        "no residual around the MLP",
        "x = x + self.mlp(",
        "x = self.mlp(",
        "blocks.0.after_mlp",
        "residual",
    ),
    _mistral(
        "the output layer is tied to the embedding",
        'file["lm_head.weight"]',
        'file["model.embed_tokens.weight"]',
        "logits",
        "tying",
    ),
    # The cache.
    _mistral(
        "the position is the length of the rolling cache",
        'seen = int(cache[0]["positions"][-1]) + 1',
        'seen = cache[0]["k"].shape[1]',
        _ATTENTION + "queries",
        "cache",
    ),
    _mistral(
        "the position of the last token again",
        'int(cache[0]["positions"][-1]) + 1',
        'int(cache[0]["positions"][-1])',
        _ATTENTION + "queries",
        "cache",
    ),
    _mistral(
        "the rolling cache is shorter than the window",
        "slice(-self.window, None)",
        "slice(-(self.window - 2), None)",
        _ATTENTION + "keys",
        "cache",
    ),
    _mistral(
        "the rolling cache keeps the oldest values",
        'cache["v"] = k[:, keep], v[:, keep]',
        'cache["v"] = k[:, keep], v[:, : self.window]',
        _ATTENTION + "values",
        "cache",
    ),
    _mistral(
        "new values are put before the old ones",
        'torch.cat([cache["v"], v], dim=1)',
        'torch.cat([v, cache["v"]], dim=1)',
        _ATTENTION + "values",
        "cache",
    ),
    # Training.
    _mistral(
        "the label after the last token is counted",
        "    labels[:, -1] = -100  # the last token has no next one\n",
        "",
        "loss",
        "loss",
    ),
    _mistral(
        "labels are shifted in the other direction",
        "tokens.roll(-1, dims=1)",
        "tokens.roll(1, dims=1)",
        "loss",
        "loss",
    ),
    _mistral(
        "labels are smoothed",
        "ignore_index=-100)",
        "ignore_index=-100, label_smoothing=0.1)",
        "loss",
        "loss",
    ),
    _mistral(
        "the residual around attention is detached",
        "x = x + self.attention(",
        "x = x.detach() + self.attention(",
        "gradients.blocks.0.mlp.down.weight",
        "gradient",
    ),
    _mistral(
        "one half of the MLP is detached",
        "F.silu(gate) * up",
        "F.silu(gate) * up.detach()",
        "gradients.blocks.1.mlp.up.weight",
        "gradient",
    ),
    _mistral(
        "the last norm is detached",
        "self.head(self.final_norm(x))",
        "self.head(self.final_norm(x).detach())",
        "gradients.final_norm.weight",
        "gradient",
    ),
    _mistral(
        "the embedding is frozen",
        "    return model.eval()",
        "    model.embedding.requires_grad_(False)\n    return model.eval()",
        "gradients.embedding.weight",
        "gradient",
    ),
    _mistral(
        "weight decay of norms",
        '"weight_decay": 0}',
        '"weight_decay": 0.1}',
        "updates.blocks.0.attention_norm.weight",
        "optimizer",
    ),
    _mistral(
        "ten times the learning rate",
        "lr=0.001",
        "lr=0.01",
        "updates.embedding.weight",
        "optimizer",
    ),
    _mistral(
        "only norms have weight decay",
        "    return torch.optim.AdamW(\n",
        "    decay, no_decay = no_decay, decay\n    return torch.optim.AdamW(\n",
        "updates.embedding.weight",
        "optimizer",
    ),
    _mistral(
        "AdamW with the default betas",
        "        betas=(0.9, 0.95),\n",
        "",
        "updates.embedding.weight",
        "optimizer",
    ),
]

_bert = partial(Fault, "bert")
_BERT = [
    # Weights and heads.
    _bert(
        "the square matrix of the queries is transposed",
        "        state[name] = tensor",
        '        state[name] = tensor.T if name.endswith("attention.query.weight") else tensor',
        _ATTENTION + "queries",
        "orientation",
    ),
    _bert(
        "the square matrix of the keys is transposed",
        "        state[name] = tensor",
        '        state[name] = tensor.T if name.endswith("attention.key.weight") else tensor',
        _ATTENTION + "keys",
        "orientation",
    ),
    _bert(
        "the square matrix of the values is transposed",
        "        state[name] = tensor",
        '        state[name] = tensor.T if name.endswith("attention.value.weight") else tensor',
        _ATTENTION + "values",
        "orientation",
    ),
    _bert(
        "the square matrix of the output is transposed",
        "        state[name] = tensor",
        '        state[name] = tensor.T if name.endswith("attention.dense.weight") else tensor',
        _ATTENTION + "output",
        "orientation",
    ),
    _bert(
        "the square matrix of the last transform is transposed",
        "        state[name] = tensor",
        '        state[name] = tensor.T if name.endswith("head.dense.weight") else tensor',
        "logits",
        "orientation",
    ),
    _bert(
        "queries and keys exchanged",
        "query = self.fold(self.query(x))\n        key = self.fold(self.key(x))",
        "query = self.fold(self.key(x))\n        key = self.fold(self.query(x))",
        _ATTENTION + "queries",
        "packing",
    ),
    _bert(
        "features viewed as (dim, heads)",
        "x = x.view(n, length, self.heads, width // self.heads)",
        "x = x.view(n, length, width // self.heads, self.heads).transpose(2, 3)",
        _ATTENTION + "queries",
        "packing",
    ),
    _bert(
        "heads split without a transpose",
        "x.transpose(1, 2).reshape(n * self.heads, length, width // self.heads)",
        "x.reshape(n * self.heads, length, width // self.heads)",
        _ATTENTION + "queries",
        "packing",
    ),
    _bert(
        "heads merged without a transpose",
        "x.transpose(1, 2).reshape(-1, length, self.heads * size)",
        "x.reshape(-1, length, self.heads * size)",
        _ATTENTION + "output",
        "packing",
    ),
    _bert(
        "batch and heads exchanged when heads are merged",
        "x.view(-1, self.heads, length, size)",
        "x.view(self.heads, -1, length, size).transpose(0, 1)",
        _ATTENTION + "output",
        "packing",
    ),
    _bert(
        "no bias of the values",
        "self.fold(self.value(x))",
        "self.fold(nn.functional.linear(x, self.value.weight))",
        _ATTENTION + "values",
        "packing",
    ),
    _bert(
        "no bias of the output layer",
        "return self.decoder(x)",
        "return nn.functional.linear(x, self.decoder.weight)",
        "logits",
        "packing",
    ),
    _bert(
        "layers in reverse order",
        "for layer in self.layers:",
        "for layer in self.layers[::-1]:",
        _ATTENTION + "queries",
        "packing",
    ),
    _bert(
        "the first layer runs twice",
        "x = layer(x)",
        "x = self.layers[0](x)",
        "blocks.1.attention.queries",
        "packing",
    ),
    _bert(
        "one matrix of the second layer is not read",
        "        state[name] = tensor",
        '        state[name] = model.state_dict()[name] if "s.1.up.w" in name else tensor',
        "blocks.1.mlp.hidden",
        "packing",
    ),
    # Scores and the mask.
    _bert(
        "not scaled",
        "tensor = tensor * scale",
        "tensor = tensor.clone()",
        _ATTENTION + "scaled",
        "scale",
    ),
    _bert(
        "multiplied by the root instead of divided",
        "tensor * scale",
        "tensor / scale",
        _ATTENTION + "scaled",
        "scale",
    ),
    _bert(
        "scaled by the width",
        '(c["hidden_size"] // c["num_attention_heads"]) ** -0.5',
        'c["hidden_size"] ** -0.5',
        _ATTENTION + "scaled",
        "scale",
    ),
    _bert(
        "the bias of the queries is not scaled",
        'if ".query." in name',
        'if ".query.weight" in name',
        _ATTENTION + "scaled",
        "scale",
    ),
    _bert(
        "scaled again in the attention",
        "bmm(query, key.mT).softmax",
        "(bmm(query, key.mT) * query.size(-1) ** -0.5).softmax",
        _ATTENTION + "scaled",
        "scale",
    ),
    _bert(
        "a causal mask",
        "bmm(query, key.mT).softmax(-1)",
        '(bmm(query, key.mT) + torch.full([x.size(1)] * 2, float("-inf")).triu(1)).softmax(-1)',
        _ATTENTION + "weights",
        "mask",
    ),
    _bert(
        "the first token is hidden",
        "bmm(query, key.mT).softmax(-1)",
        'bmm(query, key.mT).masked_fill(torch.arange(x.size(1)) == 0, float("-inf")).softmax(-1)',
        _ATTENTION + "weights",
        "mask",
    ),
    _bert(
        "softmax over the queries",
        ".softmax(-1)",
        ".softmax(1)",
        _ATTENTION + "weights",
        "orientation",
    ),
    # Norms.
    _bert(
        "eps 1e-5 in the embeddings",
        'self.types = nn.Embedding(c["type_vocab_size"], c["hidden_size"])\n'
        '        self.norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])',
        'self.types = nn.Embedding(c["type_vocab_size"], c["hidden_size"])\n'
        '        self.norm = nn.LayerNorm(c["hidden_size"])',
        "embedded",
        "norm",
    ),
    _bert(
        "eps 1e-3 after attention",
        'self.attention_norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])',
        'self.attention_norm = nn.LayerNorm(c["hidden_size"], eps=1e-3)',
        "blocks.0.after_attention",
        "norm",
    ),
    _bert("no norm of the embeddings", "return self.norm(x)", "return x", "embedded", "norm"),
    _bert(
        "the norm before attention instead of after it",
        "x = self.attention_norm(x + self.attention(x))",
        "x = x + self.attention(self.attention_norm(x))",
        _ATTENTION + "queries",
        "norm",
    ),
    _bert(
        "the norm of attention without the residual",
        "x = self.attention_norm(x + self.attention(x))",
        "x = x + self.attention_norm(self.attention(x))",
        "blocks.0.after_attention",
        "norm",
    ),
    _bert(
        "no norm after the MLP",
        "x = self.norm(x + self.down(hidden))",
        "x = x + self.down(hidden)",
        "blocks.0.after_mlp",
        "norm",
    ),
    _bert(
        "the norms of a layer exchanged",
        "x = self.attention_norm(x + self.attention(x))\n"
        "        hidden = nn.functional.gelu(self.up(x))\n"
        "        x = self.norm(x",
        "x = self.norm(x + self.attention(x))\n"
        "        hidden = nn.functional.gelu(self.up(x))\n"
        "        x = self.attention_norm(x",
        "blocks.0.after_attention",
        "norm",
    ),
    _bert(
        "no norm in the last transform",
        "x = self.norm(nn.functional.gelu(self.dense(x)))",
        "x = nn.functional.gelu(self.dense(x))",
        "logits",
        "norm",
    ),
    # Everything else of the forward pass.
    _bert(
        "GELU with tanh",
        "nn.functional.gelu(self.up(x))",
        'nn.functional.gelu(self.up(x), approximate="tanh")',
        _MLP + "hidden",
        "activation",
    ),
    _bert(
        "ReLU instead of GELU",
        "nn.functional.gelu(self.up(x))",
        "nn.functional.relu(self.up(x))",
        _MLP + "hidden",
        "activation",
    ),
    _bert(
        "no activation in the last transform",
        "nn.functional.gelu(self.dense(x))",
        "self.dense(x)",
        "logits",
        "activation",
    ),
    _bert(
        "positions begin at 2",
        "torch.arange(ids.size(1), device",
        "torch.arange(2, 2 + ids.size(1), device",
        "embedded",
        "positions",
    ),
    _bert("no position embedding", " + self.positions(position_ids)", "", "embedded", "positions"),
    _bert(
        "positions count the texts of the batch",
        "torch.arange(ids.size(1), device=ids.device)",
        "torch.arange(ids.size(0), device=ids.device)[:, None]",
        "embedded",
        "positions",
    ),
    _bert("no type embedding", " + self.types(type_ids)", "", "embedded", "embedding"),
    _bert(
        "the other type of tokens",
        "torch.zeros_like(ids)",
        "torch.ones_like(ids)",
        "embedded",
        "embedding",
    ),
    _bert(
        "the embedding of the tokens is scaled",
        "self.words(ids) +",
        "self.words(ids) * self.words.embedding_dim**0.5 +",
        "embedded",
        "embedding",
    ),
    _bert(
        "no residual around attention",
        "self.attention_norm(x + self.attention(x))",
        "self.attention_norm(self.attention(x))",
        "blocks.0.after_attention",
        "residual",
    ),
    _bert(
        "no residual around the MLP",
        "self.norm(x + self.down(hidden))",
        "self.norm(self.down(hidden))",
        "blocks.0.after_mlp",
        "residual",
    ),
    _bert(
        "the output layer is a copy of the embedding",
        "        self.decoder.weight = embedding.weight\n",
        "",
        "gradients.embedding.weight",
        "tying",
    ),
    # Training.
    _bert(
        "targets are the next tokens",
        "cross_entropy(logits.view(-1, logits.size(-1)), ids.view(-1))",
        "cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())",
        "loss",
        "loss",
    ),
    _bert(
        "the softmax is computed twice",
        "cross_entropy(logits.view(",
        "cross_entropy(logits.softmax(-1).view(",
        "loss",
        "loss",
    ),
    _bert(
        "the token 0 is taken for padding",
        "ids.view(-1))",
        "ids.view(-1), ignore_index=0)",
        "loss",
        "loss",
    ),
    _bert(
        "the embeddings are detached",
        "x = self.embeddings(ids)",
        "x = self.embeddings(ids).detach()",
        "gradients.embedding_norm.bias",
        "gradient",
    ),
    _bert(
        "the output of attention is detached",
        "return self.dense(self.unfold(context))",
        "return self.dense(self.unfold(context)).detach()",
        "gradients.blocks.1.attention.output.bias",
        "gradient",
    ),
    _bert(
        "the weights of attention are detached",
        "context = bmm(probabilities, value)",
        "context = bmm(probabilities.detach(), value)",
        "gradients.blocks.1.attention.k.weight",
        "gradient",
    ),
    _bert(
        "the last norm is frozen",
        "    return model.eval()",
        "    model.head.norm.requires_grad_(False)\n    return model.eval()",
        "gradients.transform.norm.bias",
        "gradient",
    ),
    _bert(
        "norms and biases are not trained",
        "[group(True, 0.1), group(False, 0.0)]",
        "[group(True, 0.1)]",
        "updates.embedding_norm.weight",
        "optimizer",
    ),
    _bert(
        "weight decay of everything but matrices",
        "[group(True, 0.1), group(False, 0.0)]",
        "[group(True, 0.0), group(False, 0.1)]",
        "updates.embedding.weight",
        "optimizer",
    ),
    _bert(
        "weight decay of everything",
        "group(False, 0.0)",
        "group(False, 0.1)",
        "updates.embedding_norm.weight",
        "optimizer",
    ),
    _bert(
        "L2 in Adam instead of weight decay",
        "torch.optim.AdamW(",
        "torch.optim.Adam(",
        "updates.embedding.weight",
        "optimizer",
    ),
]

FAULTS: list[Fault] = [*_GPT2, *_LLAMA, *_QWEN3, *_MISTRAL, *_BERT]
