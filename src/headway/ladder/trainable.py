"""trainable: learned matrices turn each token into a query, a key and a value.

    queries = x W_query,  keys = x W_key,  values = x W_value
    weights = softmax(queries keys^T / sqrt(d_k)),    context = weights values

A token has three vectors: what it looks for (query), what the queries are compared with (key) and
what it contributes to a context (value). Scaled dot-product attention: Vaswani et al. 2017,
equation 1.
"""

from jaxtyping import Float

from headway.attention.arrays import Array
from headway.attention.normalizers import softmax
from headway.attention.spec import DEFAULT, Spec
from headway.ladder.rung import Example, Parameters, Rung, RungConfig, Shapes, allowed, frozen
from headway.tracing import tap


def shapes(config: RungConfig) -> Shapes:
    """Three matrices (d_in, d_out), used as x @ W."""
    return dict.fromkeys(("W_query", "W_key", "W_value"), (config.d_in, config.d_out))


def apply(
    x: Float[Array, "*batch tokens d_in"], parameters: Parameters, spec: Spec = DEFAULT
) -> Float[Array, "*batch tokens d_out"]:
    """context[i] is the sum of the values, weighted by how well their keys match the query i."""
    queries = tap("queries", x @ parameters["W_query"])
    keys = tap("keys", x @ parameters["W_key"])
    values = tap("values", x @ parameters["W_value"])
    scores = tap("scores", queries @ keys.mT)
    scaled = tap("scaled", scores / keys.shape[-1] ** 0.5)
    weights = tap("weights", softmax(scaled, allowed(spec, x)))
    return tap("context", weights @ values)


# Raschka, 3.4: torch.manual_seed(123), then torch.rand(3, 2) three times.
BOOK = frozen(
    W_query=((0.29611194, 0.5165623), (0.25167072, 0.6885568), (0.07397246, 0.86652195)),
    W_key=((0.13657987, 0.10247904), (0.18405646, 0.72644675), (0.3152539, 0.68710667)),
    W_value=((0.075635314, 0.19663817), (0.31641197, 0.40174013), (0.1185683, 0.8273954)),
)

RUNG = Rung(
    name="trainable",
    idea="queries, keys and values come from learned matrices; scores are scaled by 1/sqrt(d_k)",
    equation="weights = softmax(Q K^T / sqrt(d_k)),  Q = x W_query,  K = x W_key,  V = x W_value",
    source="Vaswani et al. 2017, equation 1",
    apply=apply,
    products=lambda heads, blocks: 5,
    shapes=shapes,
    example=lambda: Example(BOOK),
)

if __name__ == "__main__":
    from headway.ladder.show import show

    show(RUNG)
