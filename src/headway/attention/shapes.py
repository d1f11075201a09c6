"""Check the shapes of queries, keys and values, and broadcast their leading axes."""

from headway.attention.arrays import Array, namespace

Shape = tuple[int, ...]


def aligned(queries: Array, keys: Array, values: Array) -> tuple[Array, Array, Array]:
    """Broadcast the arrays: equal batch axes, a heads axis, and as many heads of keys as of values.

    Raises ValueError, with the three shapes, if they do not match.
    """
    if _fit(queries.shape, keys.shape, values.shape):
        return queries, keys, values
    shapes = tuple(tuple(x.shape) for x in (queries, keys, values))
    given = "queries {}, keys {}, values {}".format(*shapes)
    if min(map(len, shapes)) < 2:
        raise ValueError(
            "attend expects (..., heads, Tq, d_k), (..., kv_heads, Tk, d_k), (..., kv_heads, Tk, "
            f"d_v), or two dimensions (tokens, dim) for one head; got {given}"
        )
    of_queries, of_keys, of_values = ((1, *shape)[-max(3, len(shape)) :] for shape in shapes)
    if of_queries[-1] != of_keys[-1]:
        raise ValueError(f"queries and keys must have the same d_k; got {given}")
    if of_keys[-2] != of_values[-2]:
        raise ValueError(f"keys and values must have the same number of tokens; got {given}")
    batch = _broadcast(of_queries[:-3], of_keys[:-3], of_values[:-3])
    kv_heads = _broadcast(of_keys[-3:-2], of_values[-3:-2])
    if batch is None:
        raise ValueError(f"the batch axes do not broadcast; got {given}")
    if kv_heads is None:
        raise ValueError(f"keys and values must have the same number of heads; got {given}")
    heads = kv_heads if of_queries[-3] == 1 else of_queries[-3:-2]
    if heads != kv_heads and (0 in kv_heads or heads[0] % kv_heads[0]):
        raise ValueError(f"the heads of keys and values must divide those of queries; got {given}")
    wanted = (batch + heads, batch + kv_heads, batch + kv_heads)
    arrays = zip((queries, keys, values), wanted, strict=True)
    queries, keys, values = (
        namespace(x).broadcast_to(x, (*leading, *x.shape[-2:])) for x, leading in arrays
    )
    return queries, keys, values


def _fit(queries: Shape, keys: Shape, values: Shape) -> bool:
    """Whether the shapes need no broadcasting: a fast check for the most frequent case."""
    return (
        len(queries) == len(keys) == len(values) >= 3
        and queries[-1] == keys[-1]
        and (keys == values or keys[:-1] == values[:-1])
        and (queries == keys or queries[:-3] == keys[:-3])
        and (queries[-3] == keys[-3] or (keys[-3] > 0 and queries[-3] % keys[-3] == 0))
    )


def _broadcast(*shapes: Shape) -> Shape | None:
    """The common shape under NumPy's rules of broadcasting; None if there is none."""
    longest = max(map(len, shapes))
    common = []
    for sizes in zip(*((1,) * (longest - len(shape)) + shape for shape in shapes), strict=True):
        others = {size for size in sizes if size != 1}
        if len(others) > 1:
            return None
        common.append(others.pop() if others else 1)
    return tuple(common)
