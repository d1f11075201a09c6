"""`watch`: trace, edit and check any model of transformers, without code for each family.

transformers calls attention through `AttentionInterface`, a table of functions, and makes masks
through `AttentionMaskInterface`. A watched model uses the two functions at the end of this file.
Ordinary forward hooks give the other steps; `headway.hf.structure` finds and names the modules.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headway import tracing
from headway.attention import dispatch
from headway.attention.kernels.matrix import is_causal_from_top_left, is_unmasked
from headway.attention.masks import as_mask, both, causal
from headway.attention.shapes import aligned
from headway.attention.spec import Spec
from headway.extras import require
from headway.hf.hooks import Hooks
from headway.hf.transformers_masks import StructuredMask
from headway.tracing import scope, tap

NAME = "headway"  # of our functions in the tables of transformers

# The arguments that are understood. indices: the keys that each query attends to (DeepSeek 3.2).
BEYOND_SDPA = ("softcap", "s_aux", "indices")
KNOWN = ("scaling", "dropout", "is_causal", "position_bias", *BEYOND_SDPA)
# Arguments that attention functions of transformers receive and that do not change the result: the
# window is also in the mask (`eager` and `sdpa` do not read it either), and the positions are
# already in queries and keys.
HARMLESS = {
    *("sliding_window", "position_ids", "cache_position", "position_embeddings"),
    *("past_key_values", "use_cache", "output_hidden_states", "return_dict", "deterministic"),
    *("num_items_in_batch",),
}
LONG = 2**22  # cells of a matrix, above which no kernel that needs the whole matrix is used

_lock = threading.RLock()
_hooks: WeakKeyDictionary[nn.Module, Hooks] = WeakKeyDictionary()  # of each watched model
_entered: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # how often it is watched
# id of each config that is switched -> the config, its implementation before, how often
_switched: dict[int, tuple[Any, Any, int]] = {}
_without_sdpa: set[int] = set()  # the ids of switched configs of models that do not support sdpa
_theirs: dict[int, str] = {}  # id of a switched config -> the function of transformers to use


@contextmanager
def watch(model: nn.Module, attention: str | None = None) -> Iterator[None]:
    """Make a model of transformers visible to `trace` and `edit`, until the context ends.

        with headway.watch(model), headway.trace() as steps:
            model(tokens)
        steps["blocks.0.attention.weights"]      # (batch, heads, Tq, Tk)

    Names are those of Headway's models, from the structure of the model: `blocks.N.attention.*`;
    with several stacks of blocks, such as an encoder and a decoder, `encoder.blocks.N.
    self_attention.*`, `decoder.blocks.N.cross_attention.*`. Recorded are

    - queries (after rotary), keys, values, scores ... context of every attention, and `output`,
      after the output projection;
    - `embedded`, the input of the first block, and `blocks.N.after_mlp`, the output of block N;
    - `blocks.N.after_attention`, only if the block adds the attention to its input and normalizes
      before it (not in parallel blocks and not after post-norm); in a decoder with two attentions
      `after_self_attention` and `after_cross_attention`;
    - `blocks.N.mlp.output`, if the block has one MLP or mixture of experts;
    - `final_norm`, if a norm follows the last block directly, and `logits`, those of the output.

    Where no trace or edit asks for the inside of an attention, a fast kernel runs; without a trace
    or edit it is `sdpa_attention_forward` of transformers. A query that may attend to no key, such
    as a row of left padding, gets context 0; transformers' eager gives it the mean of the values.

    attention: the name of an attention function of transformers, such as eager, sdpa or
    flex_attention, which then computes attention; its inside (scores ... weights) has no steps.

    On exit, also after an error, the model is as before. Watches may be nested. Raises ValueError
    for anything but a model of transformers that supports its attention interface, for dropout of
    attention while a trace or edit is open, and for an argument of attention that is not known.
    """
    require("hf", "headway.watch")
    configs = _configs(model)
    if attention is not None:
        _require_function(model, attention)
    with _lock:
        _register()
        outer = {key: _theirs.get(key) for key in configs}
        for key, (config, has_sdpa) in configs.items():
            _, before, count = _switched.get(key, (None, config._attn_implementation_internal, 0))
            _switched[key] = (config, before, count + 1)
            config._attn_implementation_internal = NAME
            if not has_sdpa:
                _without_sdpa.add(key)
            if attention is not None:
                _theirs[key] = attention
        _entered[model] = _entered.get(model, 0) + 1
        if model not in _hooks:
            _hooks[model] = Hooks(model)
            tracing.observe(_hooks[model].attach)
    try:
        yield
    finally:
        with _lock:
            _entered[model] -= 1
            if _entered[model] == 0:
                tracing.stop_observing(_hooks.pop(model).attach)
            for key, (config, _) in configs.items():
                _theirs.pop(key, None)
                if (name := outer[key]) is not None:
                    _theirs[key] = name
                _, before, count = _switched.pop(key)
                if count > 1:
                    _switched[key] = (config, before, count - 1)
                else:
                    config._attn_implementation_internal = before
                    _without_sdpa.discard(key)


def _configs(model: nn.Module) -> dict[int, tuple[Any, bool]]:
    """The configs that choose the attention function of a model and of its parts.

    Each by its id, with whether the model that owns it supports sdpa.
    """
    from transformers import PreTrainedConfig, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"headway.watch expects a model of transformers (a PreTrainedModel), got "
            f"{type(model).__name__}"
        )
    if not model._can_set_attn_implementation():
        raise ValueError(
            f"{type(model).__name__} does not call attention through transformers' "
            "AttentionInterface, so it cannot be watched"
        )
    output: dict[int, tuple[Any, bool]] = {}
    excluded: set[int] = set()

    def add(config: Any, has_sdpa: bool) -> None:
        if isinstance(config, PreTrainedConfig) and id(config) not in excluded | output.keys():
            output[id(config)] = (config, has_sdpa)

    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in parts:
        if part._can_set_attn_implementation():
            add(part.config, part._supports_sdpa)
        else:
            excluded.add(id(part.config))
    for config, has_sdpa in [*output.values()]:
        for name in config.sub_configs:
            add(getattr(config, name, None), has_sdpa)
    for module in model.modules():
        add(getattr(module, "config", None), model._supports_sdpa)
    return output


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of watched models: (batch, Tq, heads, d_v), and no weights."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if (name := _theirs.get(id(getattr(module, "config", None)))) is not None:
        return _of_theirs(name, module, query, key, value, attention_mask, **options)
    known = {name: options.pop(name, None) for name in KNOWN}
    _refuse_unknown(module, options)
    known["dropout"] = known["dropout"] or 0.0
    hooks = _hooks_of(module) if tracing.listening() else None
    if hooks is None and all(known[name] is None for name in BEYOND_SDPA):
        given = {name: value for name, value in known.items() if name not in BEYOND_SDPA}
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **given
        )
        return output
    if known["dropout"]:
        raise ValueError(
            f"{type(module).__name__} has dropout of attention weights, which Headway cannot "
            "repeat: call model.eval() first"
        )
    query, key, value = aligned(query, key, value)
    spec = _spec(module, query, key, attention_mask, known)
    with tracing.silent() if hooks is None else scope(hooks.names[module]):
        context = dispatch.run(query, key, value, spec, _kernel(query, key, spec))
    context = context.transpose(1, 2).contiguous()
    if hooks is not None:
        hooks.contexts[module] = context
    return context, None


def _of_theirs(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *mask: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    """The result of an attention function of transformers, with its inputs and output tapped."""
    function = _function(module, name)
    hooks = _hooks_of(module) if tracing.listening() else None
    if hooks is None:
        return function(module, query, key, value, *mask, **options)[0], None
    with scope(hooks.names[module]):
        query, key = tap("queries", query), tap("keys", key)
        context = function(module, query, key, tap("values", value), *mask, **options)[0]
        context = tap("context", context.transpose(1, 2)).transpose(1, 2).contiguous()
    hooks.contexts[module] = context
    return context, None


def _function(module: nn.Module, name: str) -> Any:
    """An attention function of transformers; `eager` is in the file of each model."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get(name)


def _require_function(model: nn.Module, name: str) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    known = [n for n in ALL_MASK_ATTENTION_FUNCTIONS if n != NAME]
    if name not in known or _function(model, name) is None:
        raise ValueError(
            f"attention must be one of {', '.join(sorted(known))} for {type(model).__name__} (got "
            f"{name!r})"
        )


def _hooks_of(module: nn.Module) -> Hooks | None:
    """The hooks of the watched model that contains this attention."""
    return next((hooks for hooks in _hooks.values() if module in hooks.names), None)


def _refuse_unknown(module: nn.Module, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is None or value is False or name in HARMLESS:
            continue
        hint = ""
        if name == "output_attentions":
            hint = "; record the weights with headway.trace() instead"
        raise ValueError(
            f"{type(module).__name__} passes {name!r} to attention, which Headway does not "
            f"support{hint}"
        )


def _spec(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, known: dict[str, Any]
) -> Spec:
    """The Spec of a call. A float mask of the lowest number or -inf becomes a boolean one."""
    cells = (query.shape[0], query.shape[-2], key.shape[-2])
    spec = Spec(
        bias=known["position_bias"],
        scale=known["scaling"],
        softcap=known["softcap"],
        sink_logits=known["s_aux"],
    )
    if known["indices"] is not None:
        chosen = torch.zeros(cells, dtype=torch.bool, device=query.device)
        chosen = chosen.scatter(-1, known["indices"].long(), True)
        spec = spec._replace(mask=as_mask(chosen[:, None]))
    if mask is None:
        is_causal = known["is_causal"]
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if is_causal and query.shape[-2] > 1:  # as in sdpa: aligned at the top left
            return spec._replace(mask=both(spec.mask, causal), offset=0)
        return spec
    if isinstance(mask, StructuredMask):
        if mask.cells == cells:
            spec = spec._replace(offset=mask.offset)
            if mask.structure is not None:
                spec = spec._replace(mask=both(spec.mask, mask.structure))
            return spec
        mask = mask.matrix()
    if mask.dtype == torch.bool:
        return spec._replace(mask=both(spec.mask, as_mask(mask)))
    allowed = mask > torch.finfo(mask.dtype).min / 2
    if not mask.requires_grad and not torch.where(allowed, mask, 0.0).any():
        return spec._replace(mask=both(spec.mask, as_mask(allowed)))
    bias = torch.where(allowed, mask, -torch.inf)
    return spec._replace(bias=bias if spec.bias is None else bias + spec.bias)


def _kernel(query: Tensor, key: Tensor, spec: Spec) -> str | None:
    """The kernel: for a long text one that never makes the whole matrix of the mask."""
    needs_matrix = not (is_unmasked(query, key, spec) or is_causal_from_top_left(query, key, spec))
    return "tiled" if needs_matrix and query.shape[-2] * key.shape[-2] > LONG else None


def _mask(**arguments: Any) -> Tensor | None:
    """The mask function of watched models: the structure of the mask while a trace is open."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask

    # Models that do not support sdpa expect numbers that are added to the scores.
    key = id(arguments.get("config"))
    if key in _theirs:
        own: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[_theirs[key]](**arguments)
        return own
    make = eager_mask if key in _without_sdpa else sdpa_mask
    # With use_vmap the predicate may not support arrays of positions.
    if tracing.listening() and not arguments.get("use_vmap"):
        return StructuredMask.of(arguments, make)
    mask: Tensor | None = make(**arguments)
    return mask
