"""Adapters for known attentions of PyTorch, JAX, transformers and Headway.

An adapter takes an attention and returns its declaration and `call(attention, *inputs, **options)`,
or None if the attention is of another type.
"""

import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from headway.attention.masks import as_mask, causal, documents
from headway.attention.spec import Spec

Call = Callable[..., Any]
Known = tuple[dict[str, Any], Call] | None


def known(attention: Any) -> Known:
    """Return the declaration and the call of an attention, or None if no adapter knows it."""
    results = (adapter(attention) for adapter in ADAPTERS)
    return next((result for result in results if result is not None), None)


def _is(attention: Any, module: str, *names: str) -> bool:
    """Whether it is an instance of one of these classes of an imported module."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(attention, tuple(getattr(loaded, n) for n in names))


def _multihead(attention: Any) -> Known:
    if not _is(attention, "torch.nn", "MultiheadAttention"):
        return None
    if not attention._qkv_same_embed_dim or attention.bias_k is not None or attention.add_zero_attn:
        return None  # keys of another width, or additional keys

    def call(module: Any, x: Any, mask: Any, later: Any) -> Any:
        options = {} if later is None else {"attn_mask": later, "is_causal": True}
        return module(x, x, x, key_padding_mask=mask, **options)[0]

    return _torch_module(attention, attention.dropout, call)


def _encoder_layer(attention: Any) -> Known:
    if not _is(attention, "torch.nn", "TransformerEncoderLayer"):
        return None

    def call(module: Any, x: Any, mask: Any, later: Any) -> Any:
        options = {} if later is None else {"src_mask": later, "is_causal": True}
        return module(x, src_key_padding_mask=mask, **options)

    declared, adapted = _torch_module(attention.self_attn, attention.dropout.p, call)
    return {**declared, "block": True}, adapted


def _torch_module(attention: Any, dropout: float, forward: Call) -> tuple[dict[str, Any], Call]:
    """Adapt `forward(module, x, mask, later)`; later: None, or a mask, True after the query."""

    def call(module: Any, x: Any, *, mask: Any = None, causal: bool = False) -> Any:
        later = x.new_ones(x.shape[1], x.shape[1]).triu(1).bool() if causal else None
        if attention.batch_first:
            return forward(module, x, mask, later)
        return forward(module, x.transpose(0, 1), mask, later).transpose(0, 1)

    features = ["mask", "causal", *(["dropout"] if dropout else [])]
    declared = {"kind": "self", "width": attention.embed_dim, "mask_true": "masked"}
    return {**declared, "features": features}, call


def _sdpa(attention: Any) -> Known:
    torch = sys.modules.get("torch")
    if torch is None or attention is not torch.nn.functional.scaled_dot_product_attention:
        return None
    names = {"mask": "attn_mask", "causal": "is_causal", "dropout": "dropout_p"}

    def call(function: Any, queries: Any, keys: Any, values: Any, **options: Any) -> Any:
        named = {names[name]: value for name, value in options.items()}
        return function(queries, keys, values, enable_gqa=True, **named)

    declared = {"kind": "qkv", "kv_heads": 2, "mask_shape": "full", "engine": "torch"}
    return {**declared, "features": [*names]}, call


def _jax(attention: Any) -> Known:
    jax = sys.modules.get("jax")
    if jax is None or attention is not jax.nn.dot_product_attention:
        return None

    def call(function: Any, queries: Any, keys: Any, values: Any, **options: Any) -> Any:
        named = {"mask": options.get("mask"), "is_causal": options.get("causal", False)}
        if "window" in options:  # the numbers of keys before and after the query
            named["local_window_size"] = (options["window"] - 1, 0)
        return function(queries, keys, values, **named)

    declared = {"kind": "qkv", "layout": "bthd", "kv_heads": 2, "mask_shape": "full"}
    declared |= {"engine": "jax", "precision": "float32"}  # its softmax is always in float32
    return {**declared, "features": ["mask", "causal", "window"]}, call


def _transformers(attention: Any) -> Known:
    if not _is(attention, "transformers", "PreTrainedModel"):
        return None

    def call(model: Any, tokens: Any, **options: Any) -> Any:
        if "labels" in options:
            return model(input_ids=tokens, labels=options["labels"]).loss
        named = {}
        if "mask" in options:  # as in `generate`: padding has no positions
            mask = options["mask"].long()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            named = {"attention_mask": mask, "position_ids": positions}
        if "cache" in options:
            out = model(input_ids=tokens, past_key_values=options["cache"], use_cache=True, **named)
            return out.logits, out.past_key_values
        return model(input_ids=tokens, use_cache=False, **named).logits

    config = attention.config
    tied = ["tied"] if config.tie_word_embeddings else []
    declared = {"kind": "model", "vocabulary": config.vocab_size, **_of_config(config)}
    return {**declared, "features": ["mask", "cache", "labels", *tied]}, call


def _of_config(config: Any) -> dict[str, Any]:
    """Return what a config of transformers says about attention, if it holds in every layer."""
    kinds = {*(getattr(config, "layer_types", None) or ["sliding_attention"])}
    is_sliding = kinds == {"sliding_attention"} and getattr(config, "use_sliding_window", True)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    rotary = getattr(config, "rope_parameters", None) or {}
    declared = {
        "window": getattr(config, "sliding_window", None) if is_sliding else None,
        "layers": getattr(config, "num_hidden_layers", None),
        "scale": None if scalar is None else scalar**-0.5,
        "softcap": getattr(config, "attn_logit_softcapping", None),
        "rotary_base": rotary.get("rope_theta"),
    }
    return {name: value for name, value in declared.items() if value is not None}


def _gpt(attention: Any) -> Known:
    if not _is(attention, "headway.torch.gpt", "GPT"):
        return None
    seeds = count()

    def call(model: Any, tokens: Any, **options: Any) -> Any:
        starts = (~options["mask"]).sum(-1) if "mask" in options else None
        if "cache" in options:
            caches = options["cache"] or model.caches(starts=starts)
            return model(tokens, caches=caches), caches
        if starts is not None:
            return model(tokens, starts=starts)
        mask = documents(options["documents"]) if "documents" in options else None
        return model(tokens, Spec(mask=mask, seed=next(seeds) if model.training else None))

    config = attention.config
    features = ["mask", "documents", *(["cache"] if attention.can_cache else [])]
    features += [name for name in ("dropout", "tied") if getattr(config, name)]
    declared = {"kind": "model", "vocabulary": config.vocabulary, "features": features}
    declared |= {"causal": not config.is_masked, "window": config.attention.window}
    declared |= {"layers": config.layers}
    return declared, call


def _jax_gpt(attention: Any) -> Known:
    if not _is(attention, "headway.jax.gpt", "Model"):
        return None
    from headway.jax import gpt

    # Compiled, because without jit each operation is compiled for each shape.
    forward_cached = sys.modules["jax"].jit(gpt.forward_cached, static_argnums=(2, 3))

    def call(model: Any, tokens: Any, **options: Any) -> Any:
        config, attend = model.config, model.attention
        params = {name: value.astype("float64") for name, value in model.params.items()}
        if "cache" in options:
            empty = gpt.empty_caches(params, config, len(tokens), config.context)
            caches, first = options["cache"] or (empty, 0)
            logits, caches = forward_cached(params, tokens, config, attend, caches, first)
            return logits, (caches, first + tokens.shape[1])
        mask = documents(options["documents"]) if "documents" in options else None
        return gpt.forward(params, tokens, config, attend, Spec(mask=mask))

    features = ["documents", *(["cache"] if attention.can_cache else [])]
    config = attention.config
    declared = {"kind": "model", "vocabulary": config.vocabulary, "engine": "jax"}
    declared |= {"causal": not config.is_masked, "window": config.attention.window}
    declared |= {"layers": config.layers}
    return {**declared, "features": features}, call


def _layer(attention: Any) -> Known:
    layers = sys.modules.get("headway.torch.layers")
    if layers is None or not _is(attention, layers.__name__, "MultiHeadAttention", "RungAttention"):
        return None
    seeds = count()

    def call(module: Any, x: Any, **options: Any) -> Any:
        if "cache" in options:
            cache = options["cache"] or layers.Cache(x.shape[1] + 64)
            return module(x, cache=cache), cache
        mask = as_mask(options["mask"][:, None, None, :]) if "mask" in options else None
        return module(x, Spec(mask=mask, seed=next(seeds) if module.training else None))

    features = ["mask", *(["dropout"] if attention.spec.dropout else [])]
    declared: dict[str, Any] = {"kind": "self", "features": features}
    if isinstance(attention, layers.RungAttention):
        rung = attention.rung
        declares = {"causal": rung.causal, "positions": rung.name == "fixed"}
        # Matrices are (d_in, d_out); without matrices any width works.
        width = next((parameter.shape[-2] for parameter in attention.parameters()), 16)
        return {**declared, **declares, "width": width}, call
    is_causal = attention.spec.mask is causal
    if is_causal:
        features.append("cache")
    declares = {"causal": is_causal, "positions": attention.rotary is not None}
    return {**declared, **declares, "width": attention.q.in_features}, call


ADAPTERS = (_multihead, _encoder_layer, _sdpa, _jax, _transformers, _gpt, _jax_gpt, _layer)
