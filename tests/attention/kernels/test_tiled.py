"""Tests of `tiled`: results with several tiles, skipped tiles, jit and torch.compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import headway
from engines import ENGINES
from headway.attention.kernels import tiled_jax, tiled_torch
from headway.attention.kernels.cases import Case
from headway.attention.masks import Mask, causal, documents, padding, window

SHAPE = Case((2,), 6, 3, 11, 13, 4, 5, {})
SINKS = np.array([0.5, -2.0, 3.0, 1.0, -np.inf, 8.0])
IDS = np.array([[0] * 4 + [1] * 9, [0] * 12 + [1]])
OPTIONS = {
    "whole": lambda array: {},
    "causal": lambda array: {"causal": True},
    "causal, top left": lambda array: {"causal": True, "offset": 0},
    "before the first key": lambda array: {"causal": True, "offset": -5},
    "beyond the last key": lambda array: {"window": 4, "offset": 9},
    "offset a row": lambda array: {"window": 4, "offset": array(np.array([1, -3]))},
    "window and padding": lambda array: {"mask": window(5) & padding(array(np.array([9, 0])))},
    "documents": lambda array: {"mask": causal & documents(array(IDS)), "scale": 0.3},
    "a head alone": lambda array: {"mask": Mask(lambda b, h, q, k: (h != 1) | (k == 0))},
    "sinks": lambda array: {"window": 4, "offset": -2, "sink_logits": array(SINKS)},
    "softcap": lambda array: {"causal": True, "softcap": 1.5},
    "dropout": lambda array: {"causal": True, "dropout": 0.3, "seed": (4, 2)},
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    for kernel in (tiled_torch, tiled_jax):
        monkeypatch.setattr(kernel, "ROWS", 4)
        monkeypatch.setattr(kernel, "COLUMNS", 3)
    monkeypatch.setattr(tiled_torch, "FEW", 0)


def arrays():
    random = np.random.default_rng(8)
    return [random.normal(size=shape) for shape in SHAPE.shapes]


def outcome(engine, options, kernel):
    """The context and the gradients."""

    def attend(*leaves):
        return headway.attend(*leaves, kernel=kernel, **options(engine.array))

    if engine is ENGINES["jax"]:
        attend = jax.jit(attend)
    context = engine.numpy(attend(*map(engine.array, arrays())))
    if engine is ENGINES["numpy"]:
        return [context]
    return [context, *engine.gradients(attend, *arrays())]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "engine",
    [
        "numpy",
        "torch",
        # Three seconds each, because JAX compiles the tiles and their gradients.
        pytest.param("jax", marks=pytest.mark.slow),
    ],
)
def test_tiles_make_the_whole(engine, options):
    output, plain = (outcome(ENGINES[engine], options, name) for name in ("tiled", "plain"))
    for one, other in zip(output, plain, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_tiles_make_the_whole_in_jax_too():
    def everything(array):
        mask = causal & padding(array(np.array([9, 13])))
        offset = array(np.array([1, -3]))
        return {"mask": mask, "offset": offset, "softcap": 1.5, "dropout": 0.3, "seed": 4}

    test_tiles_make_the_whole("jax", everything)


@pytest.mark.parametrize("shape", [(11, 13), (6, 1, 13), (2, 1, 1, 13), (2, 6, 11, 13)])
def test_gradient_of_a_bias_of_any_shape(shape):
    leaves = [torch.tensor(x) for x in arrays()]
    output = []
    for kernel in ("tiled", "plain"):
        bias = torch.linspace(-1, 1, int(np.prod(shape))).double().reshape(shape).requires_grad_()
        headway.attend(*leaves, bias=bias, kernel=kernel, softcap=2.0).square().sum().backward()
        output.append(bias.grad)
    assert output[0].shape == shape
    assert output[1].abs().max() > 1e-3
    assert torch.allclose(*output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_gradient_of_the_sinks(engine):
    output = []
    for kernel in ("tiled", "plain"):

        def attend(q, k, v, sinks, kernel=kernel):
            return headway.attend(q, k, v, mask=window(4), sink_logits=sinks, kernel=kernel)

        output.append(ENGINES[engine].gradients(attend, *arrays(), SINKS)[3])
    assert output[1].shape == (6,)
    assert np.count_nonzero(output[1]) == 5  # one sink is -inf
    assert np.allclose(*output, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mask", "few", "tiles"),
    [
        *((None, 0, 12), (causal, 0, 9), (window(2), 0, 6)),
        *((None, 1, 8), (causal, 1, 6), (window(2), 1, 6)),  # 6 by 3, but in a narrow band
    ],
    ids=str,
)
def test_completely_masked_tiles_are_skipped(monkeypatch, mask, few, tiles):
    """Twelve rows and columns in tiles of 4 by 3, counted by hand; 6 by 3 for few heads."""
    monkeypatch.setattr(tiled_torch, "FEW", few)
    monkeypatch.setattr(tiled_torch, "MORE_ROWS", 6)
    met, scores = [], tiled_torch._Tiles._scores

    def counted(self, queries, rows, columns):
        met.append((rows, columns))
        return scores(self, queries, rows, columns)

    monkeypatch.setattr(tiled_torch._Tiles, "_scores", counted)
    x = torch.randn(1, 1, 12, 2, requires_grad=True)
    context = headway.attend(x, x, x, mask=mask, kernel="tiled")
    assert len(met) == len(set(map(str, met))) == tiles
    context.sum().backward()
    assert len(met) == 2 * tiles


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max(self.elements, *(x.untyped_storage().nbytes() // 8 for x in made), 0)
        return out


def test_no_matrix_of_weights_is_ever_made():
    sizes = {}
    for kernel in ("tiled", "plain"):
        for tokens in (24, 48):
            x = torch.randn(2, 3, tokens, 5, dtype=torch.float64, requires_grad=True)
            with Largest() as largest:
                headway.attend(x, x, x, causal=True, kernel=kernel).sum().backward()
            sizes[kernel, tokens] = largest.elements
    assert sizes["plain", 48] == 4 * sizes["plain", 24] == 2 * 3 * 48 * 48
    assert sizes["tiled", 48] == 2 * sizes["tiled", 24] == 2 * 3 * 48 * 5


@pytest.mark.slow
def test_jax_keeps_no_matrix_of_weights():
    x = jnp.ones((2, 3, 48, 5), dtype=jnp.float32)

    def memory(tokens, kernel):
        def loss(x):
            return headway.attend(x, x, x, causal=True, kernel=kernel).sum()

        compiled = jax.jit(jax.grad(loss)).lower(x[:, :, :tokens]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(48, "plain") > 3 * memory(24, "plain")
    assert memory(48, "tiled") < 2.5 * memory(24, "tiled")


def test_the_custom_operators_pass_opcheck():
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays()]
    numbers = (0.0, float("inf"), 2, 0.5, 3.0)
    torch.library.opcheck(tiled_torch._forward, (*leaves, *numbers))


def test_refused_on_jax():
    leaves = [jnp.asarray(x) for x in arrays()]
    with pytest.raises(headway.Unsupported, match="the option bias"):
        headway.attend(*leaves, bias=jnp.zeros((11, 13)), kernel="tiled")
    with pytest.raises(headway.Unsupported, match="an array as a mask"):
        headway.attend(*leaves, mask=jnp.ones((11, 13), dtype=bool), kernel="tiled")


def test_there_is_no_second_derivative():
    x = torch.randn(1, 1, 5, 2, requires_grad=True)
    context = headway.attend(x, x, x, kernel="tiled")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(context.sum(), x, create_graph=True)


def test_dropout_without_a_seed_is_refused():
    x = torch.randn(1, 1, 5, 2)
    with pytest.raises(ValueError, match="needs a seed"):
        headway.attend(x, x, x, dropout=0.1, kernel="tiled")
