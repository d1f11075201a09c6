"""What is known by itself: the attentions of the libraries, and how to call them.

Each takes the attention and what was declared; it returns what the doctor is to examine, what
is to be declared and how it is called, or None when it is something else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Call = Callable[..., Any] | None
Adapted = tuple[Any, dict[str, Any], Call]


def adapted(attention: Any, declared: dict[str, Any], call: Call) -> Adapted:
    """With what is known about it declared, unless somebody says how it is to be called."""
    if call is None and "kind" not in declared:
        for adapter in ADAPTERS:
            known = adapter(attention)
            if known is not None:
                attention, found, call = known
                return attention, {**found, **declared}, call
    return attention, declared, call


def _multihead(attention: Any) -> Adapted | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(attention, torch.nn.MultiheadAttention):
        return None

    def call(module: Any, x: Any, *, mask: Any = None, causal: bool = False) -> Any:
        x = x if module.batch_first else x.transpose(0, 1)
        tokens = x.shape[1 if module.batch_first else 0]
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        options = {"attn_mask": later, "is_causal": True} if causal else {}
        out, _ = module(x, x, x, key_padding_mask=mask, **options)
        return out if module.batch_first else out.transpose(0, 1)

    features = ["mask", "causal", *(["dropout"] if attention.dropout else [])]
    declared = {"kind": "self", "width": attention.embed_dim, "mask_true": "masked"}
    return attention, {**declared, "features": features}, call


def _encoder_layer(attention: Any) -> Adapted | None:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(attention, torch.nn.TransformerEncoderLayer):
        return None
    first = attention.self_attn.batch_first

    def call(module: Any, x: Any, *, mask: Any = None, causal: bool = False) -> Any:
        tokens = x.shape[1]
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        options = {"src_mask": later, "is_causal": True} if causal else {}
        out = module(x if first else x.transpose(0, 1), src_key_padding_mask=mask, **options)
        return out if first else out.transpose(0, 1)

    features = ["mask", "causal", *(["dropout"] if attention.dropout.p else [])]
    declared = {"kind": "self", "width": attention.self_attn.embed_dim, "mask_true": "masked"}
    return attention, {**declared, "block": True, "features": features}, call


def _sdpa(attention: Any) -> Adapted | None:
    torch = sys.modules.get("torch")
    if torch is None or attention is not torch.nn.functional.scaled_dot_product_attention:
        return None

    def call(function: Any, queries: Any, keys: Any, values: Any, **options: Any) -> Any:
        known = {"mask": "attn_mask", "causal": "is_causal", "dropout": "dropout_p"}
        named = {known[name]: value for name, value in options.items()}
        return function(queries, keys, values, enable_gqa=True, **named)

    declared = {"kind": "qkv", "heads": 4, "kv_heads": 2, "mask_shape": "full", "engine": "torch"}
    return attention, {**declared, "features": ["mask", "causal", "dropout"]}, call


def _jax(attention: Any) -> Adapted | None:
    jax = sys.modules.get("jax")
    if jax is None or attention is not jax.nn.dot_product_attention:
        return None

    def call(function: Any, queries: Any, keys: Any, values: Any, **options: Any) -> Any:
        known = {"mask": "mask", "causal": "is_causal", "window": "local_window_size"}
        named = {known[name]: value for name, value in options.items()}
        if "window" in options:  # JAX's are the keys before and after, without the query itself
            named["local_window_size"] = (options["window"] - 1, 0)
        return function(queries, keys, values, **named)

    declared = {"kind": "qkv", "layout": "bthd", "kv_heads": 2, "mask_shape": "full"}
    features = ["mask", "causal", "window"]
    declared |= {"engine": "jax", "precision": "float32"}  # its softmax is always in float32
    return attention, {**declared, "features": features}, call


def _transformers(attention: Any) -> Adapted | None:
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(attention, transformers.PreTrainedModel):
        return None

    def call(model: Any, tokens: Any, **options: Any) -> Any:
        if "labels" in options:
            return model(input_ids=tokens, labels=options["labels"]).loss
        if "cache" in options:
            out = model(input_ids=tokens, past_key_values=options["cache"], use_cache=True)
            return out.logits, out.past_key_values
        named = {}
        if "mask" in options:  # as `generate` does: the padding counts for no position
            mask = options["mask"].long()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            named = {"attention_mask": mask, "position_ids": positions}
        return model(input_ids=tokens, use_cache=False, **named).logits

    features = ["mask", "cache", "labels"]
    if attention.config.tie_word_embeddings:
        features.append("tied")
    declared = {"kind": "model", "vocabulary": attention.config.vocab_size}
    return attention, {**declared, "features": features}, call


def _gpt(attention: Any) -> Adapted | None:
    own = sys.modules.get("headway.torch.gpt")
    if own is None or not isinstance(attention, own.GPT):
        return None
    torch = sys.modules["torch"]
    from headway.parts.masks import documents

    calls = iter(range(2**31))

    def call(model: Any, tokens: Any, **options: Any) -> Any:
        if "labels" in options:
            logits = model(tokens[:, :-1]).flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
        if "cache" in options:
            caches = options["cache"] or model.caches()
            return model(tokens, caches=caches), caches
        if "mask" in options:
            return model(tokens, starts=(~options["mask"]).sum(-1))
        mask = documents(options["documents"]) if "documents" in options else None
        return model(tokens, mask=mask, seed=next(calls) if model.training else None)

    features = ["documents"]
    if attention.can_cache:
        features += ["cache", "mask"]
    if attention.config.dropout:
        features.append("dropout")
    if attention.config.tied:
        features.append("tied")
    declared = {"kind": "model", "vocabulary": attention.config.vocabulary}
    return attention, {**declared, "features": features}, call


def _layer(attention: Any) -> Adapted | None:
    own = sys.modules.get("headway.torch.layers")
    if own is None or not isinstance(attention, (own.MultiHeadAttention, own.RungAttention)):
        return None
    from headway.parts.masks import as_mask, causal

    calls = iter(range(2**31))

    def call(module: Any, x: Any, **options: Any) -> Any:
        if "cache" in options:
            cache = options["cache"] or own.Cache(64)
            return module(x, cache=cache), cache
        mask = as_mask(options["mask"][:, None, None, :]) if "mask" in options else None
        return module(x, mask=mask, seed=next(calls) if module.training else None)

    features = ["mask"]
    if isinstance(attention, own.MultiHeadAttention):
        own_causal, positions = attention.mask is causal, attention.rotary is not None
        features += ["cache"] if own_causal else []
    else:
        own_causal, positions = "attend" in attention.rung.options, attention.rung.name == "fixed"
    if attention.dropout:
        features.append("dropout")
    # Its first matrix is (d_in, d_out), but for a Linear's; without any, all widths are right.
    width = next((parameter.shape[-2] for parameter in attention.parameters()), 16)
    if hasattr(attention, "q_proj"):
        width = attention.q_proj.in_features
    declared = {"kind": "self", "width": width, "causal": own_causal, "positions": positions}
    return attention, {**declared, "features": features}, call


ADAPTERS = (_multihead, _encoder_layer, _sdpa, _jax, _transformers, _gpt, _layer)
