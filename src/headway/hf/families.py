"""Tiny random models of every text family of the installed transformers, for tests and tables."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.extras import require
from headway.hf.watch import watch
from headway.tracing import trace

# The sizes of a tiny model, by the name that a config gives them. A config takes those that it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"), 2
    ),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "encoder_num_key_value_heads"), 2),
    **dict.fromkeys(("decoder_num_key_value_heads",), 2),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "n_inner"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("intermediate_size_mlp", "shared_intermediate_size"), 48),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "qk_nope_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "attention_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    "qk_rope_head_dim": 4,
    "vocab_size": 99,
    "decoder_vocab_size": 99,
    "vocab_size_per_layer_input": 99,
    "hidden_size_per_layer_input": 8,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "local_attention": 4,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_kv_shared_layers"), 0),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), 0),
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads", "linear_num_value_heads"), 4),
    "linear_num_key_heads": 2,
    **dict.fromkeys(("mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_d_ssm"), 16),
}
EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
# If a model with these sizes does not run, the changes are tried one after the other.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4, "decoder_num_key_value_heads": 4, "encoder_num_key_value_heads": 4},
    {"num_key_value_heads": 1},
    {"head_dim": 8, "num_key_value_heads": 4, "vocab_size": 99, **EXPERTS},
    # With MLA, head_dim is the part of a head with rotary positions.
    {"head_dim": 4, "num_key_value_heads": 4, "vocab_size": 99, **EXPERTS},
    {"num_hidden_layers": 4, "attn_layer_indices": [1]},
    {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
    {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
)
LARGEST = 20_000_000  # parameters of a model that counts as tiny
TOKENS = 12
BOUND = 1e-5  # the largest relative difference from eager in float32


class WatchedFamily(NamedTuple):
    """A family of transformers: its name (`model_type`), its task and the name of its class."""

    name: str
    task: str  # seq2seq, masked or causal
    model: str


class Measurement(NamedTuple):
    """A watched model compared with eager: the largest difference of the logits, relative.

    cached: token by token with a cache; None if the family has none. padded: a batch with left
    padding, at the tokens. steps: the names of one trace.
    """

    complete_text: float
    cached: float | None
    padded: float | None
    steps: list[str]


def families() -> list[WatchedFamily]:
    """The text families of the installed transformers, with one model class each."""
    require("hf", "the table of families")
    from transformers.models.auto import modeling_auto as auto

    tables = {
        "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    output: dict[str, WatchedFamily] = {}
    for task, table in tables.items():
        for name, model in table.items():
            model = model if isinstance(model, str) else model[0]
            output.setdefault(name, WatchedFamily(name, task, model))
    return sorted(output.values())


def tiny_model(family: WatchedFamily, seed: int = 0) -> nn.Module:
    """A random model with a few thousand parameters that runs with eager attention.

    Raises ValueError, with the reason, if there is none.
    """
    reasons = []
    for changes in CHANGES:
        try:
            model = _made(family, changes, seed)
            with torch.no_grad():
                model(**inputs(family))
            return model
        except Exception as error:  # whatever the code of a family raises
            reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
    raise ValueError(f"no tiny model was made: {reasons[0]}")


def examine(family: WatchedFamily) -> Measurement | str:
    """`measure` for a tiny model of a family; a reason if the family cannot be watched."""
    import transformers

    if not getattr(transformers, family.model)._can_set_attn_implementation():
        return "does not call attention through the interface"
    try:
        with quietly():
            measurement = measure(tiny_model(family), family)
    except ValueError as error:
        return str(error).splitlines()[0]
    if not any(name.endswith(".weights") for name in measurement.steps):
        return "has no attention, or does not call it through the interface"
    if not measurement.complete_text < BOUND:
        return f"the logits differ by {measurement.complete_text:.0e}"
    return measurement


def inputs(family: WatchedFamily) -> dict[str, Tensor]:
    """Token numbers for a model of this family: two rows."""
    tokens = torch.randint(3, 99, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    if family.task == "seq2seq":
        return {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)[:, : TOKENS - 3]}
    return {"input_ids": tokens}


def measure(model: nn.Module, family: WatchedFamily) -> Measurement:
    """Compare a watched and traced model with the same model with eager attention."""
    given = inputs(family)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[0, :3] = 0
    padded = {**given, "attention_mask": mask}
    kept = mask.bool() if family.task != "seq2seq" else slice(None)
    with torch.no_grad():
        eager = model(**given).logits
        eager_padded = model(**padded).logits
        try:
            eager_cached = None if family.task == "masked" else _cached(model, given)
        except Exception:  # whatever the code of a family raises: it cannot use a cache like this
            eager_cached = None
        with watch(model):
            difference = _difference(eager, model(**given).logits)
            with trace() as steps:
                traced = model(**given).logits
            difference = max(difference, _difference(eager, traced))
            with trace():
                of_padded = model(**padded).logits
                cached = None if eager_cached is None else _cached(model, given)
    return Measurement(
        complete_text=difference,
        cached=None if eager_cached is None else _difference(eager_cached, cached),
        padded=_difference(eager_padded[kept], of_padded[kept]),
        steps=list(steps),
    )


def _cached(model: nn.Module, given: dict[str, Tensor]) -> Tensor | None:
    """The logits of a text that is given token by token; None if the model has no cache."""
    from transformers.modeling_outputs import BaseModelOutput

    *others, name = given
    fixed: dict[str, Any] = {other: given[other] for other in others}
    past, logits = None, []
    for column in range(given[name].shape[1]):
        output = model(
            **fixed,
            **{name: given[name][:, column : column + 1]},
            past_key_values=past,
            use_cache=True,
        )
        past = getattr(output, "past_key_values", None)
        if past is None:
            return None
        logits.append(output.logits)
        if (memory := getattr(output, "encoder_last_hidden_state", None)) is not None:
            fixed = {"encoder_outputs": BaseModelOutput(last_hidden_state=memory)}
    return torch.cat(logits, dim=1)


def _difference(expected: Tensor, output: Tensor | None) -> float:
    if output is None:
        return float("nan")
    return float((output - expected).abs().max() / expected.abs().max())


def _made(family: WatchedFamily, changes: dict[str, Any], seed: int) -> nn.Module:
    import transformers

    kind = getattr(transformers, family.model)
    with quietly():
        config = _config(transformers.CONFIG_MAPPING[family.name], changes)
        config._attn_implementation = "eager"
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in kind(config).parameters())
        if count > LARGEST:
            raise ValueError(f"the tiny model has {count:,} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = kind(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if not parameter.requires_grad:  # a table of sines for the positions
                        continue
                    if parameter.ndim > 1:
                        parameter.normal_(std=parameter.shape[-1] ** -0.5)
                    else:  # so that no norm is the identity and no bias is 0
                        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _config(kind: Any, changes: dict[str, Any]) -> Any:
    """A config of SIZES and of the changes; the configs inside it get them too."""
    default = kind()
    given = {}
    for name, size in (SIZES | changes).items():
        is_set = _value(default, name) is not None
        if is_set or (name in changes and name in {*dir(default), *vars(default)}):
            given[kind.attribute_map.get(name, name)] = size
    for name, part in kind.sub_configs.items():
        if isinstance(getattr(default, name, None), part):
            given[name] = _config(part, changes)
    return kind(**given)


def _value(config: Any, name: str) -> Any:
    """A field of a config; None if it has none, or one that is different in each layer."""
    try:
        is_fixed = isinstance(getattr(type(config), name, None), property)
        return None if is_fixed else getattr(config, name, None)
    except Exception:  # transformers raises for a field that each layer has
        return None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of transformers about unusual configs, and its progress bars."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(40)  # errors
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
