"""Tests of trace, edit, tap and scope on three engines, with and without compilation."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import headway
from engines import ENGINES
from headway import tracing
from headway.tracing import scope, tap


def qkv(array=np.asarray, tokens=5):
    r = np.random.default_rng(0)
    return [array(r.normal(size=(2, 3, tokens, 4))) for _ in range(3)]


NAMES = ["queries", "keys", "values", "scores", "scaled", "masked", "weights", "context"]


@pytest.mark.parametrize("engine", ENGINES)
def test_trace_records_every_step_in_order(engine):
    queries, keys, values = qkv(ENGINES[engine].array)
    with headway.trace() as steps:
        context = headway.attend(queries, keys, values, causal=True, kernel="plain")
    assert list(steps) == NAMES
    assert steps["context"] is context
    assert tuple(steps["weights"].shape) == (2, 3, 5, 5)
    untraced = headway.attend(queries, keys, values, causal=True, kernel="plain")
    assert np.array_equal(ENGINES[engine].numpy(untraced), ENGINES[engine].numpy(context))


def test_nothing_is_recorded_outside():
    with pytest.warns(UserWarning, match="nothing was recorded"), headway.trace() as steps:
        pass
    headway.attend(*qkv())
    assert len(steps) == 0
    assert tap("anything", 3) == 3


def test_scopes_nest_and_end():
    with headway.trace() as steps:
        with scope("outer"):
            with scope("inner"):
                tap("x", np.ones(1))
            tap("y", np.ones(1))
        tap("z", np.ones(1))
    assert list(steps) == ["outer.inner.x", "outer.y", "z"]


def test_only_keeps_matching_names():
    with headway.trace(only=["*.x", "y"]) as steps:
        with scope("a"):
            tap("x", np.ones(1))
            tap("y", np.ones(1))
        tap("y", np.zeros(1))
    assert list(steps) == ["a.x", "y"]


def test_a_pattern_without_a_match_suggests_the_nearest_name():
    with (
        pytest.raises(LookupError, match=r"'weihgts'; did you mean 'weights'"),
        headway.trace(only="weihgts"),
    ):
        headway.attend(*qkv())
    with pytest.raises(LookupError, match="did you mean 'context'"), headway.edit({"contxt": 0.0}):
        headway.attend(*qkv())
    with pytest.raises(LookupError, match="no step was tapped"), headway.edit({"x": 0.0}):
        pass


def test_an_unmatched_pattern_does_not_hide_another_error():
    with pytest.raises(ZeroDivisionError), headway.trace(only="nothing"):
        raise ZeroDivisionError
    assert tracing._open == 0


def test_a_missing_name_suggests_the_nearest():
    with headway.trace() as steps:
        headway.attend(*qkv())
    with pytest.raises(KeyError, match="did you mean 'weights'"):
        steps["weight"]


def test_a_repeated_name_gets_a_step_axis_or_a_list():
    with headway.trace() as steps:
        for length in (1, 2):
            tap("same", np.full((3,), length))
            tap("growing", np.ones(length))
    assert np.array_equal(steps["same"], [[1, 1, 1], [2, 2, 2]])
    assert [value.shape for value in steps["growing"]] == [(1,), (2,)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("as_function", [True, False])
def test_edit_changes_what_follows(engine, as_function):
    queries, keys, values = qkv(ENGINES[engine].array)
    change = (lambda w: w * 0 + 1 / w.shape[-1]) if as_function else np.full((1, 5), 0.2)
    with headway.edit({"weights": change}), headway.trace() as steps:
        context = headway.attend(queries, keys, values)
    numpy = ENGINES[engine].numpy
    assert np.allclose(numpy(steps["weights"]), 0.2, atol=0)
    mean = numpy(values).mean(-2, keepdims=True)
    assert np.allclose(numpy(context), mean, atol=1e-12)


def test_edits_apply_before_recording_the_outer_first():
    first, then = headway.edit({"x": lambda x: x + 1}), headway.edit({"*": lambda x: x * 10})
    with headway.trace() as steps, first, then:
        tap("x", np.array([1.0]))
    assert steps["x"] == 20


def test_an_edit_must_keep_the_shape():
    with (
        pytest.raises(ValueError, match="'x' must keep the shape"),
        headway.edit({"x": lambda x: x[:1]}),
    ):
        tap("x", np.ones(3))
    with (
        pytest.raises(ValueError, match=r"does not broadcast to \(3,\)"),
        headway.edit({"x": np.ones(4)}),
    ):
        tap("x", np.ones(3))


def test_values_keep_their_gradient():
    queries, keys, values = qkv(lambda a: torch.tensor(a, requires_grad=True))
    with headway.trace() as steps:
        headway.attend(queries, keys, values)
    steps["weights"].square().sum().backward()
    assert queries.grad.abs().sum() > 0


def test_rows_equal_those_of_the_complete_trace_and_need_less_memory():
    queries, keys, values = qkv(torch.tensor, tokens=9)
    options = {"causal": True, "mask": torch.rand(1, 1, 9, 9) > 0.2, "offset": None}
    with headway.trace() as full:
        context = headway.attend(queries, keys, values, **options)
    with headway.trace(rows=slice(2, 5)) as selected:
        with_rows = headway.attend(queries, keys, values, **options)
    assert torch.allclose(with_rows, context, atol=1e-14)
    assert list(selected) == list(full)
    for name in ("scores", "masked", "weights"):
        assert torch.equal(selected[name], full[name][..., 2:5, :])
    assert selected["queries"].shape[-2] == 3
    assert selected["keys"].shape[-2] == 9
    # The rows are not a view of the complete matrix, which was never computed.
    assert selected["weights"].untyped_storage().nbytes() == 2 * 3 * 3 * 9 * 8


def test_rows_on_the_plain_kernel_are_slices_of_the_complete_trace():
    queries, keys, values = qkv(tokens=9)
    with (
        headway.trace(only="weights") as full,
        headway.trace(only="weights", rows=slice(1, 3)) as selected,
    ):
        headway.attend(queries, keys, values, causal=True, kernel="plain")
    assert np.array_equal(selected["weights"], full["weights"][..., 1:3, :])


def test_rows_and_heads_must_be_plain_slices():
    for part in (3, slice(0, 8, 2)):
        for what in ("rows", "heads"):
            with pytest.raises(ValueError, match=f"{what} must be a slice without a step"):
                headway.trace(**{what: part})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [None, slice(2, 5)], ids=["all rows", "some rows"])
@pytest.mark.parametrize("kernel", ["plain", "tiled"])
def test_heads_equal_those_of_the_complete_trace(engine, rows, kernel):
    """Query heads 2, 3 and 4 read kv heads 1 and 2, in groups of 2."""
    r = np.random.default_rng(1)
    sizes = ((2, 6, 9, 4), (2, 3, 9, 4), (2, 3, 9, 5))
    queries, keys, values = (ENGINES[engine].array(r.normal(size=size)) for size in sizes)
    numbers = ENGINES[engine].array(r.normal(size=6))
    mask = headway.causal & headway.Mask(lambda b, h, q, k: (k + h) % 3 > 0)
    options = {"mask": mask, "sink_logits": numbers, "softcap": 3.0}
    with headway.trace() as full:
        headway.attend(queries, keys, values, **options)
    with headway.trace(rows=rows, heads=slice(2, 5)) as chosen:
        headway.attend(queries, keys, values, **options, kernel=kernel)
    assert list(chosen) == list(full)
    numpy = ENGINES[engine].numpy
    for name in full:
        heads = slice(1, 3) if name in ("keys", "values") else slice(2, 5)
        cut = slice(None) if rows is None or name in ("keys", "values") else rows
        expected = numpy(full[name])[:, heads, cut]
        np.testing.assert_allclose(numpy(chosen[name]), expected, rtol=0, atol=1e-13)


def test_only_the_traced_heads_are_computed():
    queries, keys, values = qkv(torch.tensor, tokens=9)
    with headway.trace(heads=slice(1, 2)) as chosen:
        headway.attend(queries, keys, values, causal=True)
    for name in ("scores", "scaled", "masked", "weights"):
        assert chosen[name].untyped_storage().nbytes() == 2 * 1 * 9 * 9 * 8


def test_two_traces_of_different_parts_get_their_parts():
    queries, keys, values = qkv(torch.tensor, tokens=9)
    with headway.trace(heads=slice(1, 2)) as head, headway.trace(rows=slice(3, 4)) as row:
        headway.attend(queries, keys, values, causal=True)
    assert head["weights"].shape == (2, 1, 9, 9)
    assert row["weights"].shape == (2, 3, 1, 9)
    assert torch.equal(head["weights"][:, :, 3:4], row["weights"][:, 1:2])


def test_a_trace_that_recorded_nothing_warns():
    for listener in (headway.trace(), headway.edit({"*": 0.0})):
        with pytest.warns(UserWarning, match=r"no step was tapped.*headway\.watch\(mod"), listener:
            pass
    with (
        pytest.raises(LookupError, match=r"no step matches 'x'.*headway\.watch\(model\)"),
        headway.trace(only="x"),
    ):
        pass


def test_threads_do_not_see_each_other():
    seen = {}

    def elsewhere():
        seen["context"] = headway.attend(*qkv())

    thread = threading.Thread(target=elsewhere)
    with headway.trace() as steps:
        tap("here", np.ones(1))
        thread.start()
        thread.join()
    assert list(steps) == ["here"]
    assert "context" in seen


def test_a_function_compiled_by_jax_is_traced_and_then_still_compiled():
    compilations = []

    @jax.jit
    def run(queries, keys, values):
        compilations.append(1)
        return headway.attend(queries, keys, values, causal=True)

    arrays = qkv(jnp.asarray)
    before = run(*arrays)
    with headway.trace() as steps:
        traced = run(*arrays)
        fresh = jax.jit(lambda q, k, v: headway.attend(q, k, v))(*arrays)
    eager = len(compilations)
    after = run(*arrays)
    assert len(compilations) == eager, "compiled again"
    assert steps["weights"].shape == (2, 2, 3, 5, 5)  # met twice
    assert not any(isinstance(value, jax.core.Tracer) for value in steps.values())
    assert fresh.shape == (2, 3, 5, 4)
    assert np.allclose(before, traced, atol=1e-12)
    assert np.array_equal(before, after)


def test_tracing_under_a_jax_transform_is_an_error():
    arrays = qkv(jnp.asarray)
    loss = jax.grad(lambda q, k, v: headway.attend(q, k, v).sum())
    with pytest.raises(RuntimeError, match="JAX tracer"), headway.trace():
        loss(*arrays)


def test_scan_is_unrolled_and_gets_a_step_axis():
    def body(carry, x):
        return tap("carry", carry + x), x

    with headway.trace() as steps:
        jax.lax.scan(body, jnp.zeros(()), jnp.arange(3.0))
    assert np.array_equal(steps["carry"], [0, 1, 3])
