"""The test cases of the ONNX standard, and its operators said in Headway's words.

Each operator takes its inputs in ONNX's order (None where absent) and its attributes by ONNX's
names, and gives its outputs in ONNX's order. It reshapes, joins the cache and says a mask, a bias
and an offset; Headway computes.
"""

import warnings
from typing import Any, NamedTuple

import onnx
from array_api_compat import array_namespace
from onnx.backend.test.case import node as nodes

import headway
from headway.attention import heads, norms, positions
from headway.attention.masks import Mask, causal, padding, window
from headway.attention.normalizers import softmax
from headway.attention.scores import scale_of

with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of its own arithmetic
    # The import makes the cases. `nodes.collect_testcases` reads the same list, but makes those
    # of every operator first, which takes seconds.
    import onnx.backend.test.case.node.attention
    import onnx.backend.test.case.node.rmsnormalization
    import onnx.backend.test.case.node.rotaryembedding


class Case(NamedTuple):
    """One node with its data; inputs and outputs in ONNX's order, None where absent."""

    name: str
    attributes: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


def cases(operator: str) -> list[Case]:
    """The cases that are one node of this operator.

    Each has a twin (`_expanded`) with the same data and the operator written out in simpler
    ones, for runtimes that lack it: nothing new here.
    """
    return [
        _case(case)
        for case in nodes._NodeTestCases
        if [node.op_type for node in case.model.graph.node] == [operator]
    ]


def _case(case: Any) -> Case:
    (node,), ((inputs, outputs),) = case.model.graph.node, case.data_sets

    def in_order(names: Any, arrays: Any) -> list[Any]:
        arrays = iter(arrays)
        return [next(arrays) if name else None for name in names]

    return Case(
        name=case.name.removeprefix("test_"),
        attributes={item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
        inputs=in_order(node.input, inputs),
        outputs=in_order(node.output, outputs),
        rtol=case.rtol,
        atol=case.atol,
    )


def attention(
    Q: Any,
    K: Any,
    V: Any,
    attn_mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    nonpad_kv_seqlen: Any = None,
    *,
    attend: Any = headway.attend,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> list[Any]:
    """Y, present_key, present_value; under a trace, qk_matmul_output is the step `qk_step`."""
    xp = array_namespace(Q)
    merged = Q.ndim == 3  # (batch, tokens, heads * dim)
    if merged:
        Q = heads.split(Q, q_num_heads)
        K, V = heads.split(K, kv_num_heads), heads.split(V, kv_num_heads)
    # ONNX's positions begin at the top left, or behind the keys that were there before.
    offset = 0
    if past_key is not None:
        K, V = xp.concat([past_key, K], axis=-2), xp.concat([past_value, V], axis=-2)
        offset = past_key.shape[-2]
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen - Q.shape[-2]

    mask = bias = None
    if attn_mask is not None:
        attn_mask = attn_mask[None] if attn_mask.ndim == 1 else attn_mask
        is_mask = attn_mask.dtype == xp.bool
        # It may end before the keys do: nobody sees the rest.
        rest = (*attn_mask.shape[:-1], K.shape[-2] - attn_mask.shape[-1])
        rest = xp.full(rest, False if is_mask else -xp.inf, dtype=attn_mask.dtype)
        attn_mask = xp.concat([attn_mask, rest], axis=-1)
        mask, bias = (attn_mask, None) if is_mask else (None, attn_mask)
    if nonpad_kv_seqlen is not None:
        mask = together(mask, padding(nonpad_kv_seqlen))
    if left_window_size >= 0 or right_window_size >= 0:
        mask = together(mask, sides(left_window_size, right_window_size))

    queries, keys = Q, K
    if Q.dtype == xp.float16:
        # ONNX gives queries and keys a root of the scale each, before they meet. Only in float16
        # does one see it: there the tolerance is one unit in the last place.
        root = xp.asarray(scale_of(scale, Q) ** 0.5, dtype=Q.dtype)
        queries, keys, scale = Q * root, K * root, 1.0
    Y = attend(
        queries,
        keys,
        V,
        mask=mask,
        bias=bias,
        causal=bool(is_causal),
        scale=scale,
        softcap=softcap or None,
        normalizer=softmax if softmax_precision is None else softmax_in(softmax_precision),
        offset=offset,
    )
    return [heads.merge(Y) if merged else Y, K, V]


def together(mask: Any, other: Mask) -> Mask:
    """Both masks, of which the first may be an array or None."""
    return other if mask is None else other & mask


def qk_step(case: Case) -> str:
    """The name of the step that is qk_matmul_output. (ONNX's raw one, 0, is scaled already.)"""
    steps = ("scaled", "capped", "masked", "weights")
    return steps[case.attributes.get("qk_matmul_output_mode", 0)]


def sides(left: int, right: int) -> Mask:
    """ONNX's window: -left <= key - query <= right, where -1 is no bound."""
    before = causal if left < 0 else window(left + 1)
    near = Mask(lambda batch, head, query, key: key - query <= right)
    return before | (~causal if right < 0 else ~causal & near)


def softmax_in(precision: int) -> Any:
    """Softmax in another dtype, by ONNX's number for it."""
    name = onnx.helper.tensor_dtype_to_np_dtype(precision).name

    def normalizer(scores: Any, allowed: Any) -> Any:
        xp = array_namespace(scores)
        return xp.astype(softmax(xp.astype(scores, getattr(xp, name)), allowed), scores.dtype)

    return normalizer


def rotary_embedding(
    x: Any,
    cos: Any,
    sin: Any,
    position_ids: Any = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> list[Any]:
    """x with its first rotary_embedding_dim features (0: all) turned."""
    merged = x.ndim == 3
    x = heads.split(x, num_heads) if merged else x
    if position_ids is not None:  # else cos and sin are those of the tokens already
        cos, sin = cos[position_ids], sin[position_ids]
    dim = rotary_embedding_dim or x.shape[-1]
    turned = positions.rotate(x[..., :dim], cos[:, None], sin[:, None], bool(interleaved))
    x = array_namespace(x).concat([turned, x[..., dim:]], axis=-1)
    return [heads.merge(x) if merged else x]


def rms_normalization(
    x: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> list[Any]:
    """x normalised over its axes from `axis` on."""
    assert stash_type == 1  # in float32, as rms_norm does
    scale = array_namespace(x).broadcast_to(scale, x.shape[axis % x.ndim :])
    return [norms.rms_norm(x, scale, epsilon)]
