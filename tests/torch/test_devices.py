"""What is chosen for the machine."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from gpts import gpt_config
from headway.torch import GPT, devices
from headway.training.settings import TrainingConfig


def test_what_there_is_is_chosen_and_what_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose().type == "mps"
    assert devices.choose("cpu").type == "cpu"
    with pytest.raises(ValueError, match="this machine has no cuda"):
        devices.choose("cuda")
    with pytest.raises(ValueError, match=r"one of cuda, mps, cpu \(got 'tpu'\)"):
        devices.choose("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose().type == "cuda"


def suited(device="cpu", **settings):
    parameters = sum(p.numel() for p in GPT(gpt_config(27, 16, 16, 1, 2)).parameters())
    training = TrainingConfig(batch=8, **settings)
    tokens = training.steps * training.batch * 16
    return devices.suited(parameters, tokens, training, torch.device(device))


def test_compiling_is_for_long_runs(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/" + name)
    parameters = sum(p.numel() for p in GPT(gpt_config(27, 16, 16, 1, 2)).parameters())
    ten_minutes = round(600 * 1e11 / (6 * parameters * 8 * 16))
    assert suited(steps=ten_minutes * 2).compile is True
    assert suited(steps=ten_minutes // 2).compile is False
    assert suited(steps=ten_minutes // 2, compile=True).compile is True
    assert suited(steps=ten_minutes * 2, compile=False).compile is False
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert suited(steps=ten_minutes * 2).compile is False  # no compiler
    with pytest.warns(UserWarning, match=r"torch.compile needs a C\+\+ compiler; the run is not"):
        assert suited(compile=True).compile is False


def test_more_threads_than_cores_are_reported(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.warns(UserWarning, match="3 threads, as before, but this machine has 2 cores"):
        devices.use_threads(3)
    assert torch.get_num_threads() == 3
    devices.use_threads(1)


def test_precision_follows_the_hardware(monkeypatch):
    for feature in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda feature=feature: {feature: True})
        assert suited().precision == "bfloat16"
        assert suited(precision="float32").precision == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert suited().precision == "float32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert suited().precision == "float32"
    assert suited(precision="bfloat16").precision == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert suited("cuda").precision == "bfloat16"
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation
    )
    with pytest.warns(UserWarning, match="this GPU does not support bfloat16; float32 is used"):
        assert suited("cuda").precision == "float32"


def test_mps_is_float32_without_compiling():
    with pytest.warns(UserWarning, match="training on MPS is little tested"):
        training = suited("mps", steps=10**9)
    assert (training.precision, training.compile) == ("float32", False)
    with pytest.warns(UserWarning, match="needs another device than MPS"):
        assert suited("mps", compile=True).compile is False


def test_a_compiler_that_fails_is_reported_once_and_the_function_runs():
    def backend(graph, inputs):
        raise RuntimeError("no such compiler")

    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda f: compile_(f, backend=backend))
        double = devices.compiled(lambda x: x * 2)
    with pytest.warns(UserWarning, match="the run is not compiled: .*no such compiler") as caught:
        assert [double(torch.ones(())).item() for _ in range(3)] == [2, 2, 2]
    assert len(caught) == 1


def test_a_backward_pass_that_cannot_be_compiled_is_reported_too():
    def broken(graph, inputs):
        raise RuntimeError("no such compiler")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=broken)
    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda f: compile_(f, backend=backend))
        square = devices.compiled(lambda x: x * x)
    x = torch.tensor(3.0, requires_grad=True)
    with pytest.warns(UserWarning, match="the run is not compiled: .*no such compiler") as caught:
        assert [torch.autograd.grad(square(x), x)[0].item() for _ in range(3)] == [6, 6, 6]
    assert len(caught) == 1
