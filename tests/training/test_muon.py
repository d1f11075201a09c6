"""Muon: what its update is, however a model packs its matrices."""

import numpy as np
import pytest

from engines import ENGINES
from gpts import gpt_config
from headway.models.gpt import shapes
from headway.training import muon


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 5, 9)])
def test_singular_values_come_to_lie_around_one_and_directions_stay(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    result = muon.orthogonal(matrix)
    values = np.linalg.svd(result, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ result @ right.mT  # diagonal: the singular vectors are the same
    diagonal = turned * np.eye(turned.shape[-1])
    assert np.abs(turned - diagonal).max() < 1e-10


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_engine_makes_the_same(engine):
    matrices = np.random.default_rng(1).normal(size=(2, 5, 3))
    result = engine.numpy(muon.orthogonal(engine.array(matrices)))
    np.testing.assert_allclose(result, muon.orthogonal(matrices), rtol=1e-12, atol=1e-12)


PACKED = {
    "blocks.0.mlp.up.weight": (24, 6),
    "blocks.0.attention.k.weight": (4, 6),
    "blocks.0.attention.W_query": (6, 8),
    "blocks.0.attention.W_qkv": (6, 15),
    "stacked.W_value": (2, 6, 4),
}


@pytest.mark.parametrize(("name", "shape"), PACKED.items())
def test_packing_undoes_unpacking(name, shape):
    value = np.arange(np.prod(shape), dtype=float).reshape(shape)
    matrices = muon.unpacked(name, value)
    assert np.array_equal(muon.packed(name, matrices, value), value)
    assert sum(matrix.size for matrix in matrices) == value.size


def test_matrices_are_oriented_d_out_d_in_however_they_are_packed():
    queries, keys, values = (np.random.default_rng(i).normal(size=(6, 6)) for i in range(3))
    side_by_side = np.concatenate([queries, keys, values], axis=1)
    unpacked = muon.unpacked("blocks.0.attention.W_qkv", side_by_side)
    for result, wanted in zip(unpacked, (queries, keys, values), strict=True):
        assert np.array_equal(result, wanted.T)
    assert np.array_equal(muon.unpacked("blocks.0.attention.q.weight", queries.T)[0], queries.T)
    assert np.array_equal(muon.unpacked("blocks.0.attention.W_query", queries)[0], queries.T)
    heads = np.stack(np.split(queries, 2, axis=1))  # `stacked`: (heads, d_in, d_head)
    assert np.array_equal(muon.unpacked("blocks.0.attention.W_query", heads)[0], queries.T)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_projections_of_the_blocks_and_no_table_are_its_own(norm):
    mlp = {"layer": "gelu", "rms": "relu2"}[norm]
    config = gpt_config(11, 8, 12, 2, 3, norm=norm, mlp=mlp, tied=False)
    own = {name for name, shape in shapes(config).items() if muon.is_matrix(name, len(shape))}
    kinds = {name.rpartition("0.")[2] for name in own if ".0." in name}
    parts = ("attention.q", "attention.k", "attention.v", "attention.output", "mlp.up", "mlp.down")
    assert kinds == {f"{part}.weight" for part in parts}
    assert len(own) == 2 * len(kinds)
