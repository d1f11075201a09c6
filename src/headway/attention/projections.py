"""The learned projections before and after attention: `x @ W + b` with W (d_in, d_out)."""

from jaxtyping import Float

from headway.attention.arrays import Array


def linear(
    x: Float[Array, "... d_in"],
    weight: Float[Array, "d_in d_out"],
    bias: Float[Array, " d_out"] | None = None,
) -> Float[Array, "... d_out"]:
    """x @ weight, plus the bias unless it is None."""
    return x @ weight if bias is None else x @ weight + bias


def project(
    x: Float[Array, "... d_in"],
    W_query: Float[Array, "d_in d_q"],
    W_key: Float[Array, "d_in d_kv"],
    W_value: Float[Array, "d_in d_kv"],
    b_query: Float[Array, " d_q"] | None = None,
    b_key: Float[Array, " d_kv"] | None = None,
    b_value: Float[Array, " d_kv"] | None = None,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values from three matrices  (Vaswani et al. 2017, section 3.2.2)."""
    return linear(x, W_query, b_query), linear(x, W_key, b_key), linear(x, W_value, b_value)


def project_fused(
    x: Float[Array, "... d_in"],
    W_qkv: Float[Array, "d_in d_qkv"],
    bias: Float[Array, " d_qkv"] | None = None,
    *,
    d_q: int | None = None,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values from one matrix with the columns [queries | keys | values].

    d_q: the number of columns of the queries, by default a third. Keys and values get half of the
    remaining columns each.
    """
    qkv = linear(x, W_qkv, bias)
    d_q = qkv.shape[-1] // 3 if d_q is None else d_q
    values_from = d_q + (qkv.shape[-1] - d_q) // 2
    return qkv[..., :d_q], qkv[..., d_q:values_from], qkv[..., values_from:]


def output(
    context: Float[Array, "... d_out"],
    W_output: Float[Array, "d_out d_model"],
    bias: Float[Array, " d_model"] | None = None,
) -> Float[Array, "... d_model"]:
    """Combine the contexts of all heads into one output vector per token."""
    return linear(context, W_output, bias)
