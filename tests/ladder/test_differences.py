"""Tests of what differs between rungs with the same result."""

import json

import jax
import numpy as np
import pytest

from headway.ladder.differences import what_differs
from headway.ladder.rung import run_example, words_and_inputs
from headway.ladder.rungs import LADDER


def products_in(jaxpr):
    """The matrix products of a program of JAX, with those of the functions that it calls."""
    inner = [v.jaxpr for e in jaxpr.eqns for v in e.params.values() if hasattr(v, "jaxpr")]
    own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return own + sum(map(products_in, inner))


@pytest.mark.parametrize("name", LADDER)
def test_the_number_of_matrix_products_is_that_of_the_code(name):
    rung = LADDER[name]
    parameters, spec, heads = rung.example()
    arrays = {n: jax.numpy.asarray(p) for n, p in parameters.items()}
    _, inputs = words_and_inputs()
    program = jax.make_jaxpr(lambda x: rung(x, arrays, spec, heads=heads))(inputs)
    assert products_in(program.jaxpr) == rung.products(heads, 1)


def test_only_rungs_that_equal_another_one_differ_in_work_and_memory():
    assert [n for n, rung in LADDER.items() if what_differs(rung)] == ["fused", "tiled"]
    fused = what_differs(LADDER["fused"])
    assert fused["products"] == {"multihead": 6, "fused": 4}
    assert fused["scores"] == {"multihead": 2 * 6 * 6, "fused": 2 * 6 * 6}
    assert fused["running"] == []
    tiled = what_differs(LADDER["tiled"])
    assert tiled["equals"] == "fused"
    assert tiled["products"] == {"fused": 4, "tiled": 2 + 2 * 3}
    assert tiled["scores"] == {"fused": 2 * 6 * 6, "tiled": 2 * 6 * 2}


@pytest.mark.parametrize("text", ["one", "Your journey starts with one step", "a b c d e"])
def test_the_running_sums_are_those_of_the_softmax_over_the_keys_so_far(text):
    _, steps, _ = run_example(LADDER["fused"], text)
    running = json.loads(json.dumps(what_differs(LADDER["tiled"], text)))["running"]
    assert len(running) == 2
    for head, rows in enumerate(running):
        count = len(text.split())
        assert [row["keys"] for row in rows] == [*range(2, count, 2), count]
        for row in rows:
            scores = steps["scaled"][head, -1, : row["keys"]]
            exponentials = np.exp(scores - scores.max())
            context = exponentials @ steps["values"][head, : row["keys"]]
            assert np.isclose(row["largest"], scores.max(), rtol=0, atol=1e-12)
            assert np.isclose(row["total"], exponentials.sum(), rtol=0, atol=1e-12)
            assert np.allclose(row["context"], context, rtol=0, atol=1e-12)
            assert np.allclose(row["result"], context / exponentials.sum(), rtol=0, atol=1e-12)
        assert np.allclose(rows[-1]["result"], steps["context"][head, -1], rtol=0, atol=1e-12)
