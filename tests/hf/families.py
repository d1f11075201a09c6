"""Tiny random models of `transformers`, whose configs differ in everything that matters."""

import torch
import transformers

SMALL = {"vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 20, "max_position_embeddings": 64}
SHORT = {**LLAMA, "max_position_embeddings": 16}  # before the scaling of the positions
GPT2 = {"vocab_size": 41, "n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 4}
BERT = {**LLAMA, "max_position_embeddings": 48, "hidden_dropout_prob": 0.0}


def rope(kind, **parameters):
    """The config's key for scaled rotary positions."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **parameters}}


YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {**YARN, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# name -> (model_type, the config's keys). The texts of the tests have 40 tokens.
VARIANTS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 gelu, wide, eps, unscaled, untied": (
        "gpt2",
        {
            **GPT2,
            "activation_function": "gelu",
            "n_inner": 30,
            "layer_norm_epsilon": 0.1,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2 relu": ("gpt2", {**GPT2, "activation_function": "relu"}),
    "gpt2 silu": ("gpt2", {**GPT2, "activation_function": "silu"}),
    "gpt2 quick_gelu": ("gpt2", {**GPT2, "activation_function": "quick_gelu"}),
    "gpt2 tanh": ("gpt2", {**GPT2, "activation_function": "tanh"}),
    "llama": ("llama", LLAMA),
    "llama grouped, wide heads, theta, eps, tied": (
        "llama",
        {
            **LLAMA,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "rms_norm_eps": 0.1,
            "tie_word_embeddings": True,
            **rope("default", rope_theta=77.0),
        },
    ),
    "llama with biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama gelu": ("llama", {**LLAMA, "hidden_act": "gelu"}),
    "llama linear": ("llama", {**SHORT, **rope("linear", factor=4.0)}),
    "llama dynamic": ("llama", {**SHORT, **rope("dynamic", factor=4.0)}),
    "llama llama3": ("llama", {**LLAMA, "head_dim": 12, **rope("llama3", **LLAMA3)}),
    "llama yarn": ("llama", {**LLAMA, "head_dim": 12, **rope("yarn", **YARN)}),
    "llama yarn with everything": (
        "llama",
        {
            **LLAMA,
            "head_dim": 12,
            **rope("yarn", **YARN, beta_fast=5.0, beta_slow=0.5, truncate=False) | {},
        },
    ),
    "llama yarn, all pairs fast": (  # the limit of the slow pairs is beyond the last pair
        "llama",
        {
            **LLAMA,
            "head_dim": 12,
            **rope("yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=3.0),
        },
    ),
    "llama yarn mscale": (
        "llama",
        {**LLAMA, **rope("yarn", **YARN, mscale=0.7, mscale_all_dim=0.3)},
    ),
    "llama yarn attention_factor": (
        "llama",
        {**LLAMA, **rope("yarn", **YARN, attention_factor=1.5)},
    ),
    "mistral with a window": ("mistral", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 7}),
    "mistral without": ("mistral", {**LLAMA, "num_key_value_heads": 4, "sliding_window": None}),
    "qwen2": ("qwen2", {**LLAMA, "num_key_value_heads": 2}),
    "qwen2 with windows": (
        "qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
        | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", {**LLAMA, "num_key_value_heads": 2, "head_dim": 10}),
    "qwen3 with biases, yarn": (
        "qwen3",
        {**LLAMA, "num_key_value_heads": 2, "head_dim": 8, "attention_bias": True}
        | rope("yarn", **YARN),
    ),
    "bert": ("bert", BERT),
    "bert relu, eps, untied": (
        "bert",
        {**BERT, "hidden_act": "relu", "layer_norm_eps": 0.1, "type_vocab_size": 3}
        | {"tie_word_embeddings": False},
    ),
}


def their_model(kind, keys):
    """A model with large random weights, so that nothing hides in near-uniform attention."""
    config = transformers.AutoConfig.for_model(kind, **keys)
    auto = (
        transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    )
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return model
