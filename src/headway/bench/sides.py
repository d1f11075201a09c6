"""The implementations that are compared, each made ready for a setting.

Every kernel of `KERNELS` is here, on PyTorch's arrays and on JAX's, without anything written for
it; what a kernel refuses is left out with its reason.
"""

from __future__ import annotations

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
from headway.attention.heads import merge, split
from headway.attention.kernels import flex
from headway.attention.kernels.kernel import refusal
from headway.attention.kernels.table import KERNELS
from headway.attention.masks import materialize
from headway.attention.options import spec_from
from headway.attention.projections import output, project_fused
from headway.attention.spec import DEFAULT, Spec, Unsupported
from headway.bench import exact, executed
from headway.bench.exact import Exact, Inputs, layer
from headway.bench.executed import Executed
from headway.bench.settings import Setting

YARDSTICK = "plain"
JAX = " (JAX)"  # behind the names of what runs there


class Side(Protocol):
    """An implementation, ready to run a setting's inputs."""

    compiled: bool  # by torch.compile, at the first run
    compiles: float | None  # seconds that it took, where that is done before the first run
    builds_mask: float | None  # seconds to make the mask, where that stands apart
    needs: int | None  # bytes beyond its inputs, where the compiler tells

    def work(self) -> object:
        """One run: the output, and the gradients if the setting wants them."""
        ...

    def finish(self) -> None:
        """Wait until what was begun is done."""
        ...

    def first_row(self) -> list[Tensor]:
        """The first batch row's output and gradients, ordered as those of `exact`."""
        ...

    def sees_the_future(self) -> bool:
        """Whether other keys in the second half change the first half's output."""
        ...

    def ran(self) -> Executed:
        """What one forward run was made of, as the profiler or the compiler tells."""
        ...


class Candidate(NamedTuple):
    """An implementation, before it is made for a setting.

    make: raises `Unsupported`, with the reason, where it cannot be made.
    complaint: what is wrong with it, where that is known.
    right: what is right for it, where it has weights of its own; None where that is not known.
    """

    name: str
    make: Callable[[Setting, Inputs], Side]
    complaint: str = ""
    right: Callable[[Setting], Exact | None] | None = None


def candidates(setting: Setting, kernels: Sequence[str] | None = None) -> list[Candidate]:
    """Those that a setting may have; the yardstick is the first. kernels: those only."""
    named = [YARDSTICK, *(name for name in kernels or KERNELS if name != YARDSTICK)]
    found = [Candidate(name, partial(_kernel, name)) for name in named]
    if setting.compiled:
        eager = Candidate(yardstick(setting), partial(_kernel, YARDSTICK, compiled=False))
        found = [eager, *found]
    if kernels is None:
        found.append(Candidate("attend", partial(_kernel, None)))
        if setting.projections:
            found.append(Candidate("fused projection", _fused))
            for weights in (False, True):
                name = f"nn.MHA{' with weights' if weights else ''}"
                found.append(Candidate(name, partial(_multihead, need_weights=weights)))
    if not setting.projections and find_spec("jax"):
        kept = [name for name in named if kernels is None or name in kernels]
        found += [
            Candidate(f"{name}{JAX}", partial(_jax_kernel, name))
            for name in kept
            if _takes_jax(name)
        ]
    return found


def yardstick(setting: Setting) -> str:
    """The name of the side that the others are measured against: the plain one, line by line."""
    return f"{YARDSTICK}, eager" if setting.compiled else YARDSTICK


# PyTorch


@final
class TorchSide:
    """A function of the leaves, of PyTorch.

    batched: how many leaves have a batch axis. ordered: puts the gradients in the order of
    `exact`'s. compiled: by torch.compile, whole or not at all.
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
        self.batched = exact.batched(setting) if batched is None else batched
        self.builds_mask, self.cuda = builds_mask, setting.device == "cuda"
        self.compiled = setting.compiled if compiled is None else compiled
        self.call = _compiled(function) if self.compiled else function

    def work(self) -> list[Tensor]:
        """See `Side`."""
        return self._results(self.inputs.upstream)

    def finish(self) -> None:
        """See `Side`."""
        if self.cuda:
            torch.cuda.synchronize()

    def first_row(self) -> list[Tensor]:
        """See `Side`."""
        with _nothing_kept() if self.compiled else nullcontext():
            out, *gradients = self._results(exact.only_first(self.inputs.upstream))
        return exact.first_row([out, *self.ordered(gradients)], 1 + self.batched)

    def sees_the_future(self) -> bool:
        """See `Side`."""
        now = exact.first_row(self.inputs.leaves, self.batched)
        before, after = (exact.results(self.function, each, now[0]) for each in _futures(now))
        return _differs_early(before[0], after[0])

    def ran(self) -> Executed:
        """See `Side`."""
        with torch.set_grad_enabled(self.inputs.leaves[0].requires_grad):
            return executed.by_torch(lambda: self.call(*self.inputs.leaves), self.cuda)

    def _results(self, upstream: Tensor) -> list[Tensor]:
        return exact.results(self.call, self.inputs.leaves, upstream)


def _futures(leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The leaves (one batch row), and the same with another second half of x or of the keys and
    values; none wants gradients."""
    kept = [each.detach() for each in leaves]
    yield kept
    random = torch.Generator().manual_seed(1)
    changed = [each.clone() for each in kept]
    for each in changed[1:3] if kept[0].ndim == 4 else changed[:1]:
        late = each[..., each.shape[-2] // 2 :, :]
        late.copy_(torch.randn(late.shape, generator=random))
    yield changed


def _differs_early(before: Tensor, after: Tensor) -> bool:
    early = before.shape[-2] // 2
    difference = (before - after)[..., :early, :].double().abs().max()
    return bool(difference > 64 * torch.finfo(before.dtype).eps * before.double().abs().max())


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """By torch.compile, in one piece: what does not compile raises."""

    def call(*leaves: Tensor) -> Tensor:
        return function(*leaves)

    # TorchDynamo keeps what it compiled by the code object, so each side has one of its own.
    own = FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
    options: dict[str, Any] = {
        "cpp.enable_kernel_profile": True
    }  # so that the profiler sees the fused loops
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


def _nothing_kept() -> AbstractContextManager[None]:
    """Within, what was compiled before is compiled again, so that its seconds are true."""
    from torch._inductor.utils import fresh_cache  # late: a second or two

    return fresh_cache()


def _kernel(
    name: str | None, setting: Setting, inputs: Inputs, *, compiled: bool | None = None
) -> Side:
    """A kernel, or Headway's own choice, alone or in the layer."""
    way = partial(attend, kernel=name, **setting.options)
    seconds = None
    if name is not None:
        spec = spec_from(setting.options)
        queries, keys, values = _attended(setting, inputs)
        reason = refusal(KERNELS[name], queries, keys, values, spec)
        if reason is not None:
            raise Unsupported(reason)
        if name == "flex":
            seconds = _seconds(lambda: flex.block_mask(queries, keys, spec))
    function = layer(setting, way) if setting.projections else way
    return TorchSide(function, inputs, setting, compiled=compiled, builds_mask=seconds)


def _attended(setting: Setting, inputs: Inputs) -> Sequence[Tensor]:
    """The queries, keys and values of the setting; with projections, some of that shape."""
    if not setting.projections:
        return inputs.leaves
    x = inputs.leaves[0]
    kv = split(x[..., : setting.kv_width], setting.kv_heads)
    return split(x, setting.heads), kv, kv


def _fused(setting: Setting, inputs: Inputs) -> Side:
    """The plain mechanism with queries, keys and values from one matrix."""
    x, *three, W_output = inputs.leaves
    widths = [each.shape[-1] for each in three]

    def apply(x: Tensor, W_qkv: Tensor, W_output: Tensor) -> Tensor:
        queries, keys, values = project_fused(x, W_qkv, d_q=setting.width)
        kv = split(keys, setting.kv_heads), split(values, setting.kv_heads)
        heads = split(queries, setting.heads)
        return output(merge(attend(heads, *kv, kernel=YARDSTICK, **setting.options)), W_output)

    def ordered(gradients: list[Tensor]) -> list[Tensor]:
        if not gradients:
            return []
        of_x, fused, last = gradients
        return [of_x, *torch.split(fused, widths, dim=-1), last]

    fused = exact.leaves([x, torch.cat(three, dim=-1), W_output], setting.backward)
    return TorchSide(apply, inputs._replace(leaves=fused), setting, ordered=ordered)


def _multihead(setting: Setting, inputs: Inputs, *, need_weights: bool) -> Side:
    """PyTorch's own layer with the same weights."""
    if setting.kv_heads != setting.heads:
        raise Unsupported("has as many heads of keys and values as of queries")
    if setting.dropout:
        raise Unsupported("has no seeded dropout, so a run could not be repeated")
    x, *three, W_output = inputs.leaves
    module = nn.MultiheadAttention(
        setting.width, setting.heads, bias=False, batch_first=True, device=x.device, dtype=x.dtype
    )
    module.eval().requires_grad_(setting.backward)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([each.mT for each in three]))
        module.out_proj.weight.copy_(W_output.mT)
    began = time.perf_counter()
    forbidden = _forbidden(setting, x)
    seconds = time.perf_counter() - began
    options = {"attn_mask": forbidden, "is_causal": setting.causal and setting.window is None}

    def apply(x: Tensor, *parameters: Tensor) -> Tensor:
        return module(x, x, x, need_weights=need_weights, **options)[0]

    def ordered(gradients: list[Tensor]) -> list[Tensor]:
        if not gradients:
            return []
        of_x, fused, last = gradients
        return [of_x, *(each.mT for each in fused.chunk(3)), last.mT]

    own = inputs._replace(leaves=(x, module.in_proj_weight, module.out_proj.weight))
    return TorchSide(apply, own, setting, ordered=ordered, builds_mask=seconds)


def _forbidden(setting: Setting, x: Tensor) -> Tensor | None:
    """nn.MultiheadAttention's mask, in which True forbids."""
    if setting.mask is None:
        return None
    one = split(x[:1], heads=1)
    return ~materialize(one, one, Spec(mask=setting.mask))[0, 0]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# JAX


@final
class JaxSide:
    """A function of the leaves, of JAX; always compiled (`jit`), and ahead of the first run."""

    builds_mask: float | None = None
    compiled = False

    def __init__(self, function: Callable[..., Any], inputs: Inputs, setting: Setting) -> None:
        import jax

        self.jax, self.function, self.inputs = jax, function, inputs
        self.batched = exact.batched(setting)

        def run(leaves: Sequence[Any], upstream: Any) -> list[Any]:
            if not setting.backward:
                return [function(*leaves)]
            out, backward = jax.vjp(function, *leaves)
            return [out, *backward(upstream)]

        self.leaves = [_to_jax(each) for each in inputs.leaves]
        self.upstream = _to_jax(inputs.upstream)
        began = time.perf_counter()
        self.call = jax.jit(run).lower(self.leaves, self.upstream).compile()
        self.compiles: float | None = time.perf_counter() - began
        sizes = self.call.memory_analysis()
        self.needs = sizes and sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    def work(self) -> object:
        """See `Side`."""
        return self._results(self.upstream)

    def finish(self) -> None:
        """See `Side`: `work` waits by itself."""

    def first_row(self) -> list[Tensor]:
        """See `Side`."""
        found = self._results(_to_jax(exact.only_first(self.inputs.upstream)))
        return exact.first_row([from_dlpack(each) for each in found], 1 + self.batched)

    def sees_the_future(self) -> bool:
        """See `Side`."""
        now = exact.first_row(self.inputs.leaves, self.batched)
        before, after = (self.function(*map(_to_jax, each)) for each in _futures(now))
        return _differs_early(from_dlpack(before), from_dlpack(after))

    def ran(self) -> Executed:
        """See `Side`."""
        return executed.by_xla(self.call.as_text() or "")

    def _results(self, upstream: Any) -> Any:
        return self.jax.block_until_ready(  # type: ignore[no-untyped-call]
            self.call(self.leaves, upstream)
        )


def _to_jax(tensor: Tensor) -> Any:
    """The same numbers; on a CPU in the same memory."""
    import jax

    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def _takes_jax(name: str) -> bool:
    x = _to_jax(torch.zeros(1, 1, 1, 1))
    return refusal(KERNELS[name], x, x, x, DEFAULT) is None


def _jax_kernel(name: str, setting: Setting, inputs: Inputs) -> Side:
    import jax

    if setting.device == "cuda" and jax.default_backend() != "gpu":
        raise Unsupported("has no GPU here")
    queries, keys, values = map(_to_jax, inputs.leaves)
    reason = refusal(KERNELS[name], queries, keys, values, spec_from(setting.options))
    if reason is not None:
        raise Unsupported(reason)
    return JaxSide(partial(attend, kernel=name, **setting.options), inputs, setting)
