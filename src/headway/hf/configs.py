"""Hugging Face's config.json to our config, and back.

A key that may change the numbers and is not understood is an error; it is never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from math import isfinite, log
from types import MappingProxyType
from typing import Any, NamedTuple

from headway.attention.positions import Rotary
from headway.hf import names
from headway.hf.names import Names
from headway.models.gpt import (
    AttentionConfig,
    GPTConfig,
    MLPConfig,
    NormConfig,
    PositionsConfig,
    unequal,
)

Values = Mapping[str, Any]
_LAYERS = 10_000  # maximum number of layers
_REFUSED = 3  # a setting that a family refuses counts as so many differences

# Keys that do not change the logits: descriptions, settings of training and of generation.
_HARMLESS = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_*"),
    *("*_token_id", "*_token", "use_cache", "initializer_*", "output_*", "return_dict*", "n_ctx"),
    *("*dropout*", "*_pdrop", "gradient_checkpointing", "pretraining_tp", "torchscript"),
    *("task_specific_params", "id2label", "label2id", "num_labels", "problem_type", "summary_*"),
    *("max_length", "min_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p"),
    *("typical_p", "num_beam*", "*_penalty", "*no_repeat_ngram_size", "early_stopping"),
    *("num_return_sequences", "bad_words_ids", "*suppress_tokens", "chunk_size_feed_forward"),
    *("finetuning_task", "prefix", "tokenizer_class", "reorder_and_upcast_attn", "unsloth_*"),
    *("is_llama_config", "max_sequence_length", "directionality", "pooler_*"),
)

_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu-exact",
    "gelu_python": "gelu-exact",
    "quick_gelu": "quick-gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
_GATED |= {"gelu": "geglu-exact", "relu": "reglu"}


class Family(NamedTuple):
    """A family of models in Hugging Face's format.

    architecture: the class of `transformers`. names: those of its parameters. defaults: the values
    of keys that a config.json may leave out. read: from their values to our config. write: from our
    config to their values; what the family does not have is lost, so that reading the values gives
    another config.
    """

    architecture: str
    names: Names
    defaults: Values
    read: Callable[[Keys], GPTConfig]
    write: Callable[[GPTConfig], dict[str, Any]]


class Keys:
    """The values of a config.json, of which each must be taken or be harmless."""

    def __init__(self, values: Values) -> None:
        self._values = dict(values)

    def take(self, name: str, otherwise: Any = None) -> Any:
        """Return a value; `otherwise` if it is missing or null."""
        value = self._values.pop(name, None)
        return otherwise if value is None else value

    def number(self, name: str, otherwise: float | None = None) -> float:
        """Return a finite number; `otherwise`, if given, if it is missing or null."""
        value = self.take(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise ValueError(f"config.json: {name} must be a number (got {value!r})")
        return value

    def count(self, name: str, otherwise: int | None = None) -> int:
        """Return an integer >= 0; `otherwise`, if given, if it is missing or null."""
        value = self.take(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"config.json: {name} must be an integer >= 0 (got {value!r})")
        return value

    def layers(self, name: str) -> int:
        """Return the number of layers. Raises ValueError if it is absurd, because a list of so many
        layers would fill the memory."""
        value = self.count(name)
        if not 1 <= value <= _LAYERS:
            raise ValueError(f"config.json: {name} must be from 1 to {_LAYERS:,} (got {value:,})")
        return value

    def flag(self, name: str, otherwise: bool = False) -> bool:
        """Return true or false. Raises ValueError for anything else."""
        value = self.take(name, otherwise)
        if not isinstance(value, bool):
            raise ValueError(f"config.json: {name} must be true or false (got {value!r})")
        return value

    def choice(self, name: str, known: Mapping[str, str]) -> str:
        """Return our name of a choice. Raises ValueError for an unknown one."""
        value = self.take(name)
        if not isinstance(value, str) or value not in known:
            raise ValueError(
                f"config.json: {name} {value!r} is not supported; supported: {', '.join(known)}"
            )
        return known[value]

    def must_be(self, name: str, expected: Any) -> None:
        """Raise ValueError if a value is neither missing nor the expected one."""
        value = self.take(name, expected)
        if value != expected:
            raise ValueError(f"config.json: {name} {value!r} is not supported, only {expected!r}")

    def check_rest(self, what: str = "config.json", harmless: tuple[str, ...] = _HARMLESS) -> None:
        """Raise ValueError for a value that was not taken, unless it is harmless or empty."""
        for name, value in self._values.items():
            is_empty = value is None or value is False or value in ("", [], {})
            if not is_empty and not any(fnmatchcase(name, pattern) for pattern in harmless):
                raise ValueError(
                    f"{what}: the key {name!r} ({value!r}) is not supported and may change the "
                    "numbers; use headway.watch with the model of transformers instead"
                )


def _gpt2(keys: Keys) -> GPTConfig:
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        keys.must_be(name, False)
    width = keys.count("n_embd")
    return GPTConfig(
        vocabulary=keys.count("vocab_size"),
        context=keys.count("n_positions"),
        width=width,
        layers=keys.layers("n_layer"),
        attention=AttentionConfig(
            heads=keys.count("n_head"), scale=None if keys.flag("scale_attn_weights", True) else 1.0
        ),
        norm=NormConfig("layer", keys.number("layer_norm_epsilon")),
        mlp=MLPConfig(
            keys.choice("activation_function", _ACTIVATIONS), keys.count("n_inner", 4 * width)
        ),
        dropout=keys.number("resid_pdrop"),
        tied=keys.flag("tie_word_embeddings"),
    )


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.attention.heads,
        "n_inner": config.mlp_width,
        "activation_function": _their(config.mlp.kind, _ACTIVATIONS),
        "layer_norm_epsilon": config.norm.eps,
        "scale_attn_weights": config.attention.scale is None,
        "tie_word_embeddings": config.tied,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }


def _llama(
    keys: Keys,
    *,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    biases: tuple[str, ...] = (),
    window: Callable[[Keys, int], int | None] = lambda keys, layers: None,
) -> GPTConfig:
    """Llama, Mistral, Qwen 2 and Qwen 3.

    qkv_bias: whether q, k and v always have biases. biases: the keys by which config.json can add
    others: attention_bias (also to q, k and v), mlp_bias. window: reads the sliding window.
    """
    width, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    layers = keys.layers("num_hidden_layers")
    rotary, context = _rotary(keys, keys.count("max_position_embeddings"))
    has_bias = {name: keys.flag(name) for name in biases}
    bias = has_bias.get("attention_bias", False)
    return GPTConfig(
        vocabulary=keys.count("vocab_size"),
        context=context,
        width=width,
        layers=layers,
        attention=AttentionConfig(
            heads=heads,
            kv_heads=keys.count("num_key_value_heads", heads),
            d_k=keys.count("head_dim", width // heads),
            qk_norm=qk_norm,
            window=window(keys, layers),
            qkv_bias=qkv_bias or bias,
            output_bias=bias,
        ),
        positions=PositionsConfig("rotary", rotary),
        norm=NormConfig("rms", keys.number("rms_norm_eps")),
        mlp=MLPConfig(
            keys.choice("hidden_act", _GATED),
            keys.count("intermediate_size"),
            has_bias.get("mlp_bias", False),
        ),
        dropout=keys.number("attention_dropout"),
        tied=keys.flag("tie_word_embeddings"),
    )


def _window_of_mistral(keys: Keys, layers: int) -> int | None:
    return keys.count("sliding_window", 0) or None


def _window_of_qwen(keys: Keys, layers: int) -> int | None:
    """The sliding window of all layers. Raises ValueError if only some layers have one."""
    window, first = keys.count("sliding_window", 0) or None, keys.count("max_window_layers", 0)
    if not keys.flag("use_sliding_window"):
        window = None
    names = ("full_attention", "sliding_attention")
    slides = window is not None
    types = [names[slides and layer >= first] for layer in range(layers)]
    types = keys.take("layer_types", types)
    if not isinstance(types, list) or len(types) != layers or not set(types) <= set(names):
        raise ValueError(f"config.json: layer_types must be {layers} of {names} (got {types!r})")
    if len({*types}) > 1:
        raise ValueError(
            "config.json: a sliding window in some layers only (layer_types, max_window_layers) "
            "is not supported; use headway.watch with the model of transformers instead"
        )
    return window if types[0] == "sliding_attention" else None


def _rotary(keys: Keys, tokens: int) -> tuple[Rotary, int]:
    """The rotary positions, and the number of tokens that the model can read.

    tokens: the number in config.json, which is the one before the scaling for some scalings.
    """
    scaling = Keys({**keys.take("rope_scaling", {}), **keys.take("rope_parameters", {})})
    theta = keys.number("rope_theta", 10000.0)
    before = keys.count("original_max_position_embeddings", tokens)
    given: dict[str, Any] = {"theta": float(scaling.number("rope_theta", theta))}
    old = scaling.take("type", "default")
    kind = scaling.take("rope_type", old)
    scaling.must_be("partial_rotary_factor", 1.0)
    if kind in ("linear", "dynamic"):
        factor = scaling.number("factor")
        original = tokens
        scaling.take("original_max_position_embeddings")  # not used by transformers
        rotary = Rotary(**given, scaling=kind, factor=factor, original=original)
        tokens = round(tokens * factor)
    elif kind in ("llama3", "yarn"):
        original = scaling.count("original_max_position_embeddings", before)
        factor = scaling.number("factor", tokens / original)
        if kind == "llama3":
            slow, fast = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
            given |= {"slow": slow, "fast": fast}
            rotary = Rotary(**given, scaling=kind, factor=factor, original=original)
        else:
            rotary = Rotary(
                **given,
                scaling="yarn",
                factor=factor,
                original=original,
                slow=scaling.number("beta_slow", 1.0) or 1.0,
                fast=scaling.number("beta_fast", 32.0) or 32.0,
                amplitude=_amplitude(scaling, factor),
                truncate=scaling.flag("truncate", True),
            )
        tokens = max(tokens, round(original * factor))
    elif kind == "default":
        rotary = Rotary(**given)
    else:
        raise ValueError(
            f"config.json: rope_type {kind!r} is not supported; supported: default, linear, "
            "dynamic, llama3, yarn"
        )
    scaling.check_rest("config.json, rope parameters", ("finetuned",))
    return rotary, tokens


def _amplitude(scaling: Keys, factor: float) -> float:
    """The factor of queries and keys in yarn, by default 0.1 ln(factor) + 1 (Peng et al. 2023)."""

    def amplitude(strength: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * strength * log(factor) + 1.0

    top, bottom = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    usual = amplitude(top) / amplitude(bottom) if top and bottom else amplitude()
    return float(scaling.number("attention_factor", usual))


def _write_llama(config: GPTConfig, *, is_qwen: bool = False) -> dict[str, Any]:
    attention, rotary = config.attention, config.positions.rotary
    parameters: dict[str, Any] = {"rope_theta": rotary.theta, "rope_type": "default"}
    tokens = config.context
    if rotary.scaling != "none":
        parameters |= {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling in ("linear", "dynamic"):
        tokens = rotary.original
    elif rotary.scaling != "none":
        parameters["original_max_position_embeddings"] = rotary.original
    if rotary.scaling == "llama3":
        parameters |= {"low_freq_factor": rotary.slow, "high_freq_factor": rotary.fast}
    if rotary.scaling == "yarn":
        parameters |= {"beta_slow": rotary.slow, "beta_fast": rotary.fast}
        parameters |= {"attention_factor": rotary.amplitude, "truncate": rotary.truncate}
    window: dict[str, Any] = {}
    if attention.window is not None:
        window = {"sliding_window": attention.window}
        window |= {"use_sliding_window": True, "max_window_layers": 0} if is_qwen else {}
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": tokens,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": config.d_k,
        "hidden_act": _their(config.mlp.kind, _GATED),
        "attention_bias": config.has_bias(attention.output_bias),
        "mlp_bias": config.has_bias(config.mlp.bias),
        "rms_norm_eps": config.norm.eps,
        "rope_parameters": parameters,
        **window,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied,
    }


def _bert(keys: Keys) -> GPTConfig:
    for name in ("is_decoder", "add_cross_attention"):
        keys.must_be(name, False)
    keys.must_be("position_embedding_type", "absolute")
    return GPTConfig(
        vocabulary=keys.count("vocab_size"),
        context=keys.count("max_position_embeddings"),
        width=keys.count("hidden_size"),
        layers=keys.layers("num_hidden_layers"),
        attention=AttentionConfig(heads=keys.count("num_attention_heads"), causal=False),
        norm=NormConfig("layer", keys.number("layer_norm_eps"), "after"),
        mlp=MLPConfig(keys.choice("hidden_act", _ACTIVATIONS), keys.count("intermediate_size")),
        dropout=keys.number("hidden_dropout_prob"),
        tied=keys.flag("tie_word_embeddings"),
        segments=keys.count("type_vocab_size"),
        output="transform",
    )


def _write_bert(config: GPTConfig) -> dict[str, Any]:
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.attention.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": _their(config.mlp.kind, _ACTIVATIONS),
        "layer_norm_eps": config.norm.eps,
        "type_vocab_size": config.segments,
        "tie_word_embeddings": config.tied,
        **dict.fromkeys(rates, config.dropout),
    }


def _their(ours: str, known: Mapping[str, str]) -> str:
    """Their first name of our activation; ours, which they do not know, if there is none."""
    return next((theirs for theirs, name in known.items() if name == ours), ours)


# What every Llama has by default (the first one, LLaMA 7B), and how the later families differ.
_LLAMA_7B: Values = MappingProxyType(
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
    }
)
_MISTRAL_7B: Values = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_QWEN: Values = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GPT2_SMALL: Values = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "tie_word_embeddings": True,
}
_BERT_BASE: Values = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "tie_word_embeddings": True,
}


def _llama_family(name: str, defaults: Values, **options: Any) -> Family:
    return Family(
        architecture=f"{name}ForCausalLM",
        names=names.LLAMA,
        defaults={**_LLAMA_7B, **defaults},
        read=partial(_llama, **options),
        write=partial(_write_llama, is_qwen=name.startswith("Qwen")),
    )


# By `model_type` in config.json. Export takes the first one that fits.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gpt2": Family(
            architecture="GPT2LMHeadModel",
            names=names.GPT2,
            defaults=_GPT2_SMALL,
            read=_gpt2,
            write=_write_gpt2,
        ),
        "llama": _llama_family("Llama", {}, biases=("attention_bias", "mlp_bias")),
        "mistral": _llama_family("Mistral", _MISTRAL_7B, window=_window_of_mistral),
        "qwen2": _llama_family("Qwen2", _QWEN, qkv_bias=True, window=_window_of_qwen),
        "qwen3": _llama_family(
            "Qwen3",
            {**_QWEN, "head_dim": 128},
            qk_norm=True,
            biases=("attention_bias",),
            window=_window_of_qwen,
        ),
        "bert": Family(
            architecture="BertForMaskedLM",
            names=names.BERT,
            defaults=_BERT_BASE,
            read=_bert,
            write=_write_bert,
        ),
    }
)


def read(values: Values) -> tuple[Family, GPTConfig]:
    """Return the family and our config of the values of a config.json.

    Raises ValueError for a family or a key that is not supported, and for a request to run code.
    """
    if values.get("auto_map"):
        raise ValueError(
            "config.json asks to run the code of its folder (auto_map), which Headway never does; "
            "remove auto_map if the model is of a family that Headway knows"
        )
    if values.get("quantization_config"):
        raise ValueError(
            "config.json: quantized weights (quantization_config) are not supported; use the "
            "folder of the model before the quantization"
        )
    if "model_type" not in values:
        raise ValueError("config.json has no model_type; it is not that of a model")
    kind = str(values["model_type"])
    if kind not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}. "
            "headway.watch traces other families with transformers"
        )
    family = FAMILIES[kind]
    keys = Keys({**family.defaults, **values})
    try:
        config = family.read(keys)
    # What a value of a wrong type, or 0 heads, can cause.
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"config.json is damaged: {error}") from None
    keys.check_rest()
    if family.names is names.BERT and not config.tied:
        family = family._replace(names=names.UNTIED_BERT)
    return family, config


def write(config: GPTConfig) -> tuple[Family, dict[str, Any]]:
    """Return the first family that computes this model, and the values of its config.json.

    Raises ValueError if there is none; the message names what the nearest family does not have.
    """
    reasons: list[tuple[int, str]] = []  # the number of differences, and the text
    for kind, family in FAMILIES.items():
        values = {"model_type": kind, **family.write(config)}
        try:
            family, reread = read(values)
        except ValueError as error:
            reasons.append((_REFUSED, f"{kind}: {error}"))
            continue
        differences = unequal(config, reread)
        if not differences:
            return family, values
        text = f"{kind}, which differs in {', '.join(differences)}"
        reasons.append((len(differences), text))
    _, nearest = min(reasons, key=lambda reason: reason[0])
    raise ValueError(
        f"no family of Hugging Face's format computes this model; the nearest is {nearest}"
    )
