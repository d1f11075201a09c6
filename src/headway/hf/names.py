"""Tables that map our names of parameters to the names in Hugging Face's files.

Our matrices `*.weight` are (d_out, d_in), with separate matrices for queries, keys and values.
GPT-2's files have (d_in, d_out), and one matrix `c_attn` for queries, keys and values.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from headway.attention.arrays import Array, namespace

Table = Mapping[str, "Location"]  # our name, with * for the layer -> its location in their file


class Location(NamedTuple):
    """The location of a parameter in a file.

    is_transposed: whether the file has (d_in, d_out). third: which third of the columns of a
    matrix for queries, keys and values it is; None if it is a complete parameter.
    """

    name: str
    is_transposed: bool = False
    third: int | None = None


def _linear(ours: str, theirs: str) -> dict[str, Location]:
    return {f"{ours}.{kind}": Location(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def _conv1d(ours: str, theirs: str, third: int | None = None) -> dict[str, Location]:
    """GPT-2's linear layer, whose weight is (d_in, d_out)."""
    return {
        f"{ours}.weight": Location(f"{theirs}.weight", is_transposed=True, third=third),
        f"{ours}.bias": Location(f"{theirs}.bias", third=third),
    }


GPT2: Table = MappingProxyType(
    {
        "embedding.weight": Location("transformer.wte.weight"),
        "position_embedding.weight": Location("transformer.wpe.weight"),
        **_linear("blocks.*.attention_norm", "transformer.h.*.ln_1"),
        **_conv1d("blocks.*.attention.q", "transformer.h.*.attn.c_attn", third=0),
        **_conv1d("blocks.*.attention.k", "transformer.h.*.attn.c_attn", third=1),
        **_conv1d("blocks.*.attention.v", "transformer.h.*.attn.c_attn", third=2),
        **_conv1d("blocks.*.attention.output", "transformer.h.*.attn.c_proj"),
        **_linear("blocks.*.mlp_norm", "transformer.h.*.ln_2"),
        **_conv1d("blocks.*.mlp.up", "transformer.h.*.mlp.c_fc"),
        **_conv1d("blocks.*.mlp.down", "transformer.h.*.mlp.c_proj"),
        **_linear("final_norm", "transformer.ln_f"),
        "head.weight": Location("lm_head.weight"),
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
        "embedding.weight": Location("model.embed_tokens.weight"),
        **{
            f"blocks.*.{ours}.weight": Location(f"model.layers.*.{theirs}.weight")
            for ours, theirs in _PARTS.items()
        },
        "final_norm.weight": Location("model.norm.weight"),
        "head.weight": Location("lm_head.weight"),
    }
)


def to_hf(table: Table, ours: Mapping[str, Array]) -> dict[str, Array]:
    """Convert parameters to Hugging Face's names and orientation.

    Raises ValueError for a parameter that the table does not have.
    """
    packed: dict[str, dict[int, Array]] = {}
    theirs: dict[str, Array] = {}
    for name, value in ours.items():
        pattern, number = _pattern(name)
        if pattern not in table:
            raise ValueError(f"parameter {name!r} has no equivalent in Hugging Face's format")
        location = table[pattern]
        their_name = location.name.replace("*", number)
        value = value.mT if location.is_transposed else value
        if location.third is None:
            theirs[their_name] = value
        else:
            packed.setdefault(their_name, {})[location.third] = value
    for their_name, thirds in packed.items():
        parts = [thirds[n] for n in range(3)]
        theirs[their_name] = namespace(parts[0]).concat(parts, axis=-1)
    return theirs


def from_hf(table: Table, theirs: Mapping[str, Array]) -> dict[str, Array]:
    """Convert parameters to our names and orientation; those not in the table are ignored."""
    ours: dict[str, Array] = {}
    locations: dict[str, list[tuple[str, Location]]] = {}
    for pattern, location in table.items():
        locations.setdefault(location.name, []).append((pattern, location))
    for name, value in theirs.items():
        pattern, number = _pattern(name)
        for our_name, location in locations.get(pattern, []):
            part = value
            if location.third is not None:
                width = value.shape[-1] // 3
                part = value[..., location.third * width : (location.third + 1) * width]
            ours[our_name.replace("*", number)] = part.mT if location.is_transposed else part
    return ours


def _pattern(name: str) -> tuple[str, str]:
    """Replace the number of the layer in a name by *; return the pattern and the number."""
    match = re.search(r"\.(\d+)\.", name)
    if match is None:
        return name, ""
    return name[: match.start(1)] + "*" + name[match.end(1) :], match[1]
