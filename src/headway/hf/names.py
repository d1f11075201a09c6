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


class Names(NamedTuple):
    """The names of a family.

    prefix: of all tensors but those of the head; some files leave it out. ignored: patterns of
    tensors that are not parameters of the model, such as masks.
    """

    table: Table
    prefix: str
    ignored: tuple[str, ...]

    def usual(self, theirs: str) -> str:
        """The usual name of a tensor. The first files of BERT say gamma and beta."""
        if not theirs.startswith((self.prefix, "lm_head.", "cls.")):
            theirs = self.prefix + theirs
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("Norm.beta", "Norm.bias")):
            theirs = theirs.replace(old, new)
        return theirs


class Location(NamedTuple):
    """The location of a parameter in a file.

    is_transposed: whether the file has (d_in, d_out). third: which third of the columns of a
    matrix for queries, keys and values it is; None if it is a complete parameter.
    """

    name: str
    is_transposed: bool = False
    third: int | None = None

    def read(self, value: Array) -> Array:
        """Return our parameter from their tensor."""
        if self.third is not None:
            width = value.shape[-1] // 3
            value = value[..., self.third * width : (self.third + 1) * width]
        return value.mT if self.is_transposed else value

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of their tensor from the shape of our parameter."""
        theirs = ours[::-1] if self.is_transposed else ours
        return theirs if self.third is None else (*theirs[:-1], 3 * theirs[-1])


def _linear(ours: str, theirs: str) -> dict[str, Location]:
    return {f"{ours}.{kind}": Location(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def _conv1d(ours: str, theirs: str, third: int | None = None) -> dict[str, Location]:
    """GPT-2's linear layer, whose weight is (d_in, d_out)."""
    return {
        f"{ours}.weight": Location(f"{theirs}.weight", is_transposed=True, third=third),
        f"{ours}.bias": Location(f"{theirs}.bias", third=third),
    }


def _layers(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, Location]:
    """The linear layers and norms of every block."""
    table: dict[str, Location] = {}
    for part, their_part in parts.items():
        table |= _linear(f"{ours}.{part}", f"{theirs}.{their_part}")
    return table


_GPT2: Table = MappingProxyType(
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

# Llama, and with the same names Mistral, Qwen 2 and Qwen 3.
_LLAMA: Table = MappingProxyType(
    {
        "embedding.weight": Location("model.embed_tokens.weight"),
        **_layers(
            "blocks.*",
            "model.layers.*",
            {
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
            },
        ),
        "final_norm.weight": Location("model.norm.weight"),
        "head.weight": Location("lm_head.weight"),
    }
)

_BERT: Table = MappingProxyType(
    {
        "embedding.weight": Location("bert.embeddings.word_embeddings.weight"),
        "position_embedding.weight": Location("bert.embeddings.position_embeddings.weight"),
        "segment_embedding.weight": Location("bert.embeddings.token_type_embeddings.weight"),
        **_linear("embedding_norm", "bert.embeddings.LayerNorm"),
        **_layers(
            "blocks.*",
            "bert.encoder.layer.*",
            {
                "attention.q": "attention.self.query",
                "attention.k": "attention.self.key",
                "attention.v": "attention.self.value",
                "attention.output": "attention.output.dense",
                "attention_norm": "attention.output.LayerNorm",
                "mlp.up": "intermediate.dense",
                "mlp.down": "output.dense",
                "mlp_norm": "output.LayerNorm",
            },
        ),
        **_linear("transform.linear", "cls.predictions.transform.dense"),
        **_linear("transform.norm", "cls.predictions.transform.LayerNorm"),
        "head.bias": Location("cls.predictions.bias"),
        "head.weight": Location("cls.predictions.decoder.weight"),
    }
)


GPT2 = Names(_GPT2, "transformer.", ("*.attn.bias", "*.attn.masked_bias"))  # the causal mask
LLAMA = Names(_LLAMA, "model.", ("*.rotary_emb.inv_freq",))
BERT = Names(
    _BERT, "bert.", ("bert.embeddings.position_ids", "bert.pooler.*", "cls.seq_relationship.*")
)
# If the output layer is not tied to the embedding, it has its own bias.
UNTIED_BERT = Names(
    {**_BERT, "head.bias": Location("cls.predictions.decoder.bias")},
    BERT.prefix,
    (*BERT.ignored, "cls.predictions.bias"),
)


def location(table: Table, name: str) -> Location:
    """Return the location of our parameter with this name.

    Raises ValueError for a parameter that the table does not have.
    """
    match = re.search(r"\.(\d+)\.", name)
    number = "" if match is None else match[1]
    pattern = name if match is None else f"{name[: match.start()]}.*.{name[match.end() :]}"
    if pattern not in table:
        raise ValueError(f"parameter {name!r} has no equivalent in Hugging Face's format")
    with_star = table[pattern]
    return with_star._replace(name=with_star.name.replace("*", number))


def to_hf(table: Table, ours: Mapping[str, Array]) -> dict[str, Array]:
    """Convert our parameters to Hugging Face's names and orientation.

    Raises ValueError for a parameter that the table does not have.
    """
    packed: dict[str, dict[int, Array]] = {}
    theirs: dict[str, Array] = {}
    for name, value in ours.items():
        where = location(table, name)
        value = value.mT if where.is_transposed else value
        if where.third is None:
            theirs[where.name] = value
        else:
            packed.setdefault(where.name, {})[where.third] = value
    for name, thirds in packed.items():
        parts = [thirds[n] for n in range(3)]
        theirs[name] = namespace(parts[0]).concat(parts, axis=-1)
    return theirs
