"""The implementations that the bench compares, prepared for a setting.

Every kernel of `KERNELS` is included, on PyTorch's arrays and on JAX's, without code of its own
here; kernels that refuse a setting are left out with the reason.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import FunctionType
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from headway.attention.dispatch import attend
from headway.attention.heads import split
from headway.attention.kernels import flex
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.table import KERNELS
from headway.attention.masks import materialize
from headway.attention.options import spec_from
from headway.attention.projections import project_fused
from headway.attention.spec import DEFAULT, Spec, Unsupported
from headway.bench import executed, expected
from headway.bench.executed import Executed
from headway.bench.expected import Expected, Inputs, layer
from headway.bench.settings import Setting

BASELINE = "plain"
UNSEEDED = "has no seeded dropout, so a run could not be repeated"
JAX = " (JAX)"  # the suffix of implementations that run on JAX's arrays


class Implementation(Protocol):
    """An implementation of attention with the inputs of a setting.

    compiled: by torch.compile, in the first run. compiles: the seconds of a compilation before the
    first run. builds_mask: the seconds to build the mask, if that is a separate step. needs: bytes
    beyond the inputs, if the compiler knows them.
    """

    compiled: bool
    compiles: float | None
    builds_mask: float | None
    needs: int | None

    def work(self) -> object:
        """Run once: compute the output, and the gradients if the setting includes them."""
        ...

    def finish(self) -> None:
        """Wait for the accelerator."""
        ...

    def first_example(self) -> list[Tensor]:
        """Return output and gradients of the first batch row, in the order of `Expected.values`."""
        ...

    def leaks(self) -> bool:
        """Whether other keys in the second half change the output of the first half."""
        ...

    def profile(self) -> Executed:
        """Return what a forward pass executes, from the profiler or the compiled program."""
        ...


class Candidate(NamedTuple):
    """An implementation that is not yet prepared for a setting.

    make: raises `Unsupported`, with the reason. complaint: a fault that is already known.
    expected: the expected results of a module with its own weights; None if they are unknown.
    """

    name: str
    make: Callable[[Setting, Inputs], Implementation]
    complaint: str = ""
    expected: Callable[[Setting], Expected | None] | None = None


def candidates(setting: Setting, kernels: Sequence[str] | None = None) -> list[Candidate]:
    """Return the candidates for a setting, the baseline first. kernels: only these."""
    names = [BASELINE, *(name for name in kernels or KERNELS if name != BASELINE)]
    result = [Candidate(name, partial(_kernel, name)) for name in names]
    if setting.compiled:
        eager = Candidate(baseline(setting), partial(_kernel, BASELINE, compiled=False))
        result = [eager, *result]
    if kernels is None:
        result.append(Candidate("attend", partial(_kernel, None)))
        if setting.projections:
            result.append(Candidate("fused projection", _fused))
            for weights in (False, True):
                name = f"nn.MHA{' with weights' if weights else ''}"
                result.append(Candidate(name, partial(_multihead, need_weights=weights)))
    if not setting.projections and find_spec("jax"):
        for name in names:
            if (kernels is None or name in kernels) and _takes_jax(name):
                result.append(Candidate(f"{name}{JAX}", partial(_jax_kernel, name)))
    return result


def baseline(setting: Setting) -> str:
    """Return the name of the implementation that the others are compared with."""
    return f"{BASELINE}, eager" if setting.compiled else BASELINE


# PyTorch


@final
class TorchImplementation(Implementation):
    """A PyTorch function of the leaves.

    batched: the number of leaves with a batch axis. ordered: sorts the gradients, if there are any,
    as in `Expected.values`. compiled: by torch.compile, as one graph.
    """

    needs: int | None = None
    compiles: float | None = None

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Inputs,
        setting: Setting,
        *,
        compiled: bool | None = None,
        batched: int | None = None,
        ordered: Callable[[list[Tensor]], list[Tensor]] = list,
        builds_mask: float | None = None,
    ) -> None:
        self.function, self.inputs, self.ordered = function, inputs, ordered
        self.batched = expected.batched(setting) if batched is None else batched
        self.builds_mask, self.cuda = builds_mask, setting.device == "cuda"
        self.compiled = setting.compiled if compiled is None else compiled
        self.call = _compiled(function) if self.compiled else function

    def work(self) -> list[Tensor]:
        return self._results(self.inputs.upstream)

    def finish(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def first_example(self) -> list[Tensor]:
        with _fresh_cache() if self.compiled else nullcontext():
            out, *gradients = self._results(expected.only_first(self.inputs.upstream))
        results = [out, *self.ordered(gradients)] if gradients else [out]
        return expected.first_example(results, 1 + self.batched)

    def leaks(self) -> bool:
        leaves = expected.first_example(self.inputs.leaves, self.batched)
        before, after = (
            expected.results(self.function, variant, leaves[0]) for variant in _futures(leaves)
        )
        return _differs_early(before[0], after[0])

    def profile(self) -> Executed:
        with torch.set_grad_enabled(self.inputs.leaves[0].requires_grad):
            return executed.by_torch(lambda: self.call(*self.inputs.leaves), self.cuda)

    def _results(self, upstream: Tensor) -> list[Tensor]:
        return expected.results(self.call, self.inputs.leaves, upstream)


def _futures(leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the leaves of one batch row, without gradients, and then the same with another second
    half of x or of the keys and values."""
    leaves = [leaf.detach() for leaf in leaves]
    yield [*leaves]
    random = torch.Generator().manual_seed(1)
    changed = [leaf.clone() for leaf in leaves]
    for leaf in changed[1:3] if leaves[0].ndim == 4 else changed[:1]:
        late = leaf[..., leaf.shape[-2] // 2 :, :]
        late.copy_(torch.randn(late.shape, generator=random))
    yield changed


def _differs_early(before: Tensor, after: Tensor) -> bool:
    early = before.shape[-2] // 2
    difference = (before - after)[..., :early, :].double().abs().max()
    return bool(difference > 64 * torch.finfo(before.dtype).eps * before.double().abs().max())


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function as one graph; raises an error if that is not possible."""

    def call(*leaves: Tensor) -> Tensor:
        return function(*leaves)

    # TorchDynamo caches by code object, so each implementation needs a separate one.
    copy = FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
    # The profiler then lists the fused loops.
    options: dict[str, Any] = {"cpp.enable_kernel_profile": True}
    return torch.compile(copy, fullgraph=True, dynamic=False, options=options)


def _fresh_cache() -> AbstractContextManager[None]:
    """Ignore what was compiled before, so that the compile time is real."""
    from torch._inductor.utils import fresh_cache  # late: a second or two

    return fresh_cache()


def _kernel(
    name: str | None, setting: Setting, inputs: Inputs, *, compiled: bool | None = None
) -> Implementation:
    """Prepare a kernel, or `attend`'s choice, alone or in the layer."""
    function = partial(attend, kernel=name, **setting.options)
    seconds = None
    if name is not None:
        spec = spec_from(setting.options)
        queries, keys, values = _heads(setting, inputs)
        _refuse(name, queries, keys, values, spec)
        if name == "flex":
            began = time.perf_counter()
            flex.block_mask(queries, keys, spec)
            seconds = time.perf_counter() - began
    called = layer(setting, function) if setting.projections else function
    return TorchImplementation(called, inputs, setting, compiled=compiled, builds_mask=seconds)


def _refuse(name: str, queries: Any, keys: Any, values: Any, spec: Spec) -> None:
    """Raise `Unsupported`, with the reason, if the kernel refuses this call."""
    reason = refusal(KERNELS[name], queries, keys, values, spec)
    if reason is not None:
        raise Unsupported(reason)


def _heads(setting: Setting, inputs: Inputs) -> Sequence[Tensor]:
    """Return queries, keys and values; with projections, arrays of the same shapes."""
    if not setting.projections:
        return inputs.leaves
    x = inputs.leaves[0]
    kv = split(x[..., : setting.kv_width], setting.kv_heads)
    return split(x, setting.heads), kv, kv


def _fused(setting: Setting, inputs: Inputs) -> Implementation:
    """Prepare the plain formula with queries, keys and values from one matrix."""
    x, *matrices, W_output = inputs.leaves
    widths = [matrix.shape[-1] for matrix in matrices]

    attention = partial(attend, kernel=BASELINE, **setting.options)
    function = layer(setting, attention, partial(project_fused, d_q=setting.width))

    def ordered(gradients: list[Tensor]) -> list[Tensor]:
        of_x, fused, last = gradients
        return [of_x, *torch.split(fused, widths, dim=-1), last]

    fused = expected.leaves([x, torch.cat(matrices, dim=-1), W_output], setting.backward)
    return TorchImplementation(function, inputs._replace(leaves=fused), setting, ordered=ordered)


def _multihead(setting: Setting, inputs: Inputs, *, need_weights: bool) -> Implementation:
    """Prepare nn.MultiheadAttention with the weights of the setting."""
    if setting.kv_heads != setting.heads:
        raise Unsupported("needs as many heads of keys and values as of queries")
    if setting.dropout:
        raise Unsupported(UNSEEDED)
    x, *matrices, W_output = inputs.leaves
    module = nn.MultiheadAttention(
        setting.width, setting.heads, bias=False, batch_first=True, device=x.device, dtype=x.dtype
    )
    module.eval().requires_grad_(setting.backward)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([matrix.mT for matrix in matrices]))
        module.out_proj.weight.copy_(W_output.mT)
    began = time.perf_counter()
    forbidden = _forbidden(setting, x)
    seconds = time.perf_counter() - began
    options = {"attn_mask": forbidden, "is_causal": setting.causal and setting.window is None}

    def apply(x: Tensor, *parameters: Tensor) -> Tensor:
        return module(x, x, x, need_weights=need_weights, **options)[0]

    def ordered(gradients: list[Tensor]) -> list[Tensor]:
        of_x, fused, last = gradients
        return [of_x, *(gradient.mT for gradient in fused.chunk(3)), last.mT]

    leaves = (x, module.in_proj_weight, module.out_proj.weight)
    return TorchImplementation(
        apply, inputs._replace(leaves=leaves), setting, ordered=ordered, builds_mask=seconds
    )


def _forbidden(setting: Setting, x: Tensor) -> Tensor | None:
    """Return the mask of nn.MultiheadAttention, in which True means: not allowed."""
    if setting.mask is None:
        return None
    one = split(x[:1], heads=1)
    return ~materialize(one, one, Spec(mask=setting.mask))[0, 0]


# JAX


@final
class JaxImplementation(Implementation):
    """A JAX function of the leaves, compiled by `jit` before the first run."""

    builds_mask: float | None = None
    compiled = False

    def __init__(self, function: Callable[..., Any], inputs: Inputs, setting: Setting) -> None:
        import jax

        self.jax, self.function, self.inputs = jax, function, inputs
        self.batched = expected.batched(setting)

        def run(leaves: Sequence[Any], upstream: Any) -> list[Any]:
            if not setting.backward:
                return [function(*leaves)]
            out, backward = jax.vjp(function, *leaves)
            return [out, *backward(upstream)]

        self.leaves = [_to_jax(leaf) for leaf in inputs.leaves]
        self.upstream = _to_jax(inputs.upstream)
        began = time.perf_counter()
        self.call = jax.jit(run).lower(self.leaves, self.upstream).compile()
        self.compiles: float | None = time.perf_counter() - began
        sizes = self.call.memory_analysis()
        self.needs = sizes and sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    def work(self) -> object:
        return self._results(self.upstream)

    def finish(self) -> None:
        """See `Implementation`; `work` has waited already."""

    def first_example(self) -> list[Tensor]:
        results = self._results(_to_jax(expected.only_first(self.inputs.upstream)))
        return expected.first_example([from_dlpack(array) for array in results], 1 + self.batched)

    def leaks(self) -> bool:
        leaves = expected.first_example(self.inputs.leaves, self.batched)
        before, after = (self.function(*map(_to_jax, variant)) for variant in _futures(leaves))
        return _differs_early(from_dlpack(before), from_dlpack(after))

    def profile(self) -> Executed:
        return executed.by_xla(self.call.as_text() or "")

    def _results(self, upstream: Any) -> Any:
        return self.jax.block_until_ready(  # type: ignore[no-untyped-call]
            self.call(self.leaves, upstream)
        )


def _to_jax(tensor: Tensor) -> Any:
    """Convert to JAX; on a CPU both share the memory."""
    import jax

    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def _takes_jax(name: str) -> bool:
    x = _to_jax(torch.zeros(1, 1, 1, 1))
    return refusal(KERNELS[name], x, x, x, DEFAULT) is None


def _jax_kernel(name: str, setting: Setting, inputs: Inputs) -> Implementation:
    import jax

    if setting.device == "cuda" and jax.default_backend() != "gpu":
        raise Unsupported("JAX has no GPU here")
    queries, keys, values = map(_to_jax, inputs.leaves)
    _refuse(name, queries, keys, values, spec_from(setting.options))
    return JaxImplementation(partial(attend, kernel=name, **setting.options), inputs, setting)
