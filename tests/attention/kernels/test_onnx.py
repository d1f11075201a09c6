"""Conformance tests of the ONNX standard, with ONNX's comparison and tolerances."""

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

# All cases run on the three engines under a trace, which uses the formula. The cases that the
# kernel `sdpa` supports (no softcap, no softmax in another dtype) run on it too.
FAST = [case for case in ATTENTION if not {"softcap", "softmax_precision"} & {*case.attributes}]

# Cases that fail in 16 bits, with the message of ONNX's comparison; they run in float32 instead.
# ONNX's data are rounded after each step, ours once at the end: sdpa differs by two units in the
# last place of float16, and the tolerance is one.
ROUNDED_ONCE = "Not equal to tolerance rtol=0.001"
LEDGER = {
    ("sdpa", "attention_4d_causal_fp16"): ROUNDED_ONCE,
    ("sdpa", "attention_4d_fp16"): ROUNDED_ONCE,
}


def parametrize(cases):
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
    if on == "sdpa":  # without a trace, which would run the formula
        results = operator(
            *inputs, **case.attributes, attend=partial(headway.attend, kernel="sdpa")
        )
    else:
        with headway.trace() as steps:
            results = operator(*inputs, **case.attributes)
        if len(case.outputs) == 4:
            step = engine.numpy(steps[onnx_cases.qk_step(case)])
            results.append(engine.array(step.astype(case.outputs[3].dtype)))  # ours is float32

    pairs = zip(map(engine.numpy, results), case.outputs, strict=False)
    pairs = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    if in_float32:
        pairs = [(ours.astype(theirs.dtype), theirs) for ours, theirs in pairs]
    ours, theirs = zip(*pairs, strict=True)
    BackendTest.assert_similar_outputs(theirs, ours, case.rtol, case.atol)


def test_all_cases_of_onnx_run():
    assert [len(cases) for cases in (ATTENTION, ROTARY, RMS)] == [93, 8, 19]


# JAX compiles every case, which takes half a second: only `make test-all` runs them.
@pytest.mark.parametrize(
    "on", [pytest.param(on, marks=[pytest.mark.slow] * (on == "jax")) for on in ENGINES]
)
@parametrize(ATTENTION)
def test_attention(on, case):
    judge(on, case, onnx_cases.attention, in_float32=(on, case.name) in LEDGER)


@parametrize(FAST)
def test_attention_on_the_fast_kernel(case):
    judge("sdpa", case, onnx_cases.attention, in_float32=("sdpa", case.name) in LEDGER)


@pytest.mark.parametrize(("on", "name"), LEDGER)
def test_the_cases_in_the_ledger_fail_with_the_listed_message(on, name):
    (case,) = (case for case in ATTENTION if case.name == name)
    with pytest.raises(AssertionError, match=LEDGER[on, name]):
        judge(on, case, onnx_cases.attention)


@pytest.mark.parametrize("on", ENGINES)
@parametrize(ROTARY)
def test_rotary_embedding(on, case):
    judge(on, case, onnx_cases.rotary_embedding)


@pytest.mark.parametrize("on", ENGINES)
@parametrize(RMS)
def test_rms_normalization(on, case):
    judge(on, case, onnx_cases.rms_normalization)
