"""Conformance from outside: the ONNX standard's test cases, by its own judge and tolerances."""

from functools import partial

import numpy as np
import pytest
from onnx.backend.test import BackendTest

import headway
import onnx_cases
from engines import ENGINES

ATTENTION = onnx_cases.cases("Attention")
ROTARY = onnx_cases.cases("RotaryEmbedding")
RMS = onnx_cases.cases("RMSNormalization")

# All run on the three engines under a trace, that is on the plain mechanism; those that the fast
# kernel takes (no softcap, no softmax in another dtype) run on that too.
FAST = [case for case in ATTENTION if not {"softcap", "softmax_precision"} & {*case.attributes}]

# What a dtype rules out, and how ONNX's judge puts it. These are computed in float32 and rounded.
# ONNX's data are rounded at each step, ours once at the end: sdpa is two units in float16's last
# place away, of which the tolerance is one.
ROUNDED_ONCE = "Not equal to tolerance rtol=0.001"
LEDGER = {
    ("sdpa", "attention_4d_causal_fp16"): ROUNDED_ONCE,
    ("sdpa", "attention_4d_fp16"): ROUNDED_ONCE,
}


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def judge(on, case, operator, in_float32=False):
    """Run a case on an engine, or on PyTorch's `sdpa`, and let ONNX compare every output."""
    engine = ENGINES["torch" if on == "sdpa" else on]

    def into(array):
        if array is None:
            return None
        half = array.dtype.name in ("float16", "bfloat16")
        return engine.array(array.astype(np.float32) if half and in_float32 else array)

    inputs = [into(array) for array in case.inputs]
    if on == "sdpa":  # without a trace, for which the plain mechanism would run
        found = operator(*inputs, **case.attributes, attend=partial(headway.attend, kernel="sdpa"))
    else:
        with headway.trace() as steps:
            found = operator(*inputs, **case.attributes)
        if len(case.outputs) == 4:
            step = engine.numpy(steps[onnx_cases.qk_step(case)])
            found.append(engine.array(step.astype(case.outputs[3].dtype)))  # ours is float32

    pairs = zip(map(engine.numpy, found), case.outputs, strict=False)
    pairs = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    if in_float32:
        pairs = [(ours.astype(theirs.dtype), theirs) for ours, theirs in pairs]
    ours, theirs = zip(*pairs, strict=True)
    BackendTest.assert_similar_outputs(theirs, ours, case.rtol, case.atol)


def test_these_are_all_of_them():
    assert [len(cases) for cases in (ATTENTION, ROTARY, RMS)] == [93, 8, 19]


# JAX compiles every case anew, half a second each: `make test-all` runs them.
@pytest.mark.parametrize(
    "on", [pytest.param(on, marks=[pytest.mark.slow] * (on == "jax")) for on in ENGINES]
)
@each(ATTENTION)
def test_attention(on, case):
    judge(on, case, onnx_cases.attention, in_float32=(on, case.name) in LEDGER)


@each(FAST)
def test_attention_on_the_fast_kernel(case):
    judge("sdpa", case, onnx_cases.attention, in_float32=("sdpa", case.name) in LEDGER)


@pytest.mark.parametrize(("on", "name"), LEDGER)
def test_what_the_ledger_names_fails_for_its_reason(on, name):
    (case,) = (case for case in ATTENTION if case.name == name)
    with pytest.raises(AssertionError, match=LEDGER[on, name]):
        judge(on, case, onnx_cases.attention)


@pytest.mark.parametrize("on", ENGINES)
@each(ROTARY)
def test_rotary_embedding(on, case):
    judge(on, case, onnx_cases.rotary_embedding)


@pytest.mark.parametrize("on", ENGINES)
@each(RMS)
def test_rms_normalization(on, case):
    judge(on, case, onnx_cases.rms_normalization)
