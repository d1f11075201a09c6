"""Tables between our names of parameters and those in Hugging Face's files.

Our matrices `*.weight` are (d_out, d_in), and queries, keys and values have one each. GPT-2's
files have (d_in, d_out), and queries, keys and values side by side in one matrix, `c_attn`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from headway.attention.arrays import Array, namespace

Table = Mapping[str, "Place"]  # our name, with * for a number -> where it is in their file


class Place(NamedTuple):
    """Where a parameter is in a file.

    is_transposed: (d_in, d_out) there. third: which third of the columns it is, for parameters
    that are packed three in one.
    """

    name: str
    is_transposed: bool = False
    third: int | None = None


def _linear(ours: str, theirs: str, *, biases: bool) -> dict[str, Place]:
    kinds = ("weight", "bias") if biases else ("weight",)
    return {f"{ours}.{kind}": Place(f"{theirs}.{kind}") for kind in kinds}


def _conv1d(ours: str, theirs: str, third: int | None = None) -> dict[str, Place]:
    """GPT-2's linear layer, whose weight is (d_in, d_out)."""
    return {
        f"{ours}.weight": Place(f"{theirs}.weight", is_transposed=True, third=third),
        f"{ours}.bias": Place(f"{theirs}.bias", third=third),
    }


GPT2: Table = MappingProxyType(
    {
        "embedding.weight": Place("transformer.wte.weight"),
        "position_embedding.weight": Place("transformer.wpe.weight"),
        **_linear("blocks.*.attention_norm", "transformer.h.*.ln_1", biases=True),
        **_conv1d("blocks.*.attention.q", "transformer.h.*.attn.c_attn", third=0),
        **_conv1d("blocks.*.attention.k", "transformer.h.*.attn.c_attn", third=1),
        **_conv1d("blocks.*.attention.v", "transformer.h.*.attn.c_attn", third=2),
        **_conv1d("blocks.*.attention.output", "transformer.h.*.attn.c_proj"),
        **_linear("blocks.*.mlp_norm", "transformer.h.*.ln_2", biases=True),
        **_conv1d("blocks.*.mlp.up", "transformer.h.*.mlp.c_fc"),
        **_conv1d("blocks.*.mlp.down", "transformer.h.*.mlp.c_proj"),
        **_linear("final_norm", "transformer.ln_f", biases=True),
        "head.weight": Place("lm_head.weight"),
    }
)

_PARTS = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

# Llama's names; Qwen 3 has them too, with a norm of the queries and keys of each head.
LLAMA: Table = MappingProxyType(
    {
        "embedding.weight": Place("model.embed_tokens.weight"),
        **{
            f"blocks.*.{ours}.weight": Place(f"model.layers.*.{theirs}.weight")
            for ours, theirs in _PARTS.items()
        },
        "final_norm.weight": Place("model.norm.weight"),
        "head.weight": Place("lm_head.weight"),
    }
)


def to_hf(table: Table, ours: Mapping[str, Array]) -> dict[str, Array]:
    """Parameters by their names and in their orientation.

    Raises ValueError for a parameter that their format does not have.
    """
    packed: dict[str, dict[int, Array]] = {}
    theirs: dict[str, Array] = {}
    for name, value in ours.items():
        pattern, number = _pattern(name)
        if pattern not in table:
            raise ValueError(f"{name} has no name in this format of Hugging Face")
        place = table[pattern]
        there = place.name.replace("*", number)
        value = value.mT if place.is_transposed else value
        if place.third is None:
            theirs[there] = value
        else:
            packed.setdefault(there, {})[place.third] = value
    for there, thirds in packed.items():
        parts = [thirds[n] for n in range(3)]
        theirs[there] = namespace(parts[0]).concat(parts, axis=-1)
    return theirs


def from_hf(table: Table, theirs: Mapping[str, Array]) -> dict[str, Array]:
    """Parameters by our names and in our orientation; what the table does not name is left out."""
    ours: dict[str, Array] = {}
    places: dict[str, list[tuple[str, Place]]] = {}
    for pattern, place in table.items():
        places.setdefault(place.name, []).append((pattern, place))
    for name, value in theirs.items():
        pattern, number = _pattern(name)
        for own, place in places.get(pattern, []):
            part = value
            if place.third is not None:
                width = value.shape[-1] // 3
                part = value[..., place.third * width : (place.third + 1) * width]
            ours[own.replace("*", number)] = part.mT if place.is_transposed else part
    return ours


def _pattern(name: str) -> tuple[str, str]:
    """A name with * for the number of the layer in it, and that number."""
    found = re.search(r"\.(\d+)\.", name)
    if found is None:
        return name, ""
    return name[: found.start(1)] + "*" + name[found.end(1) :], found[1]
