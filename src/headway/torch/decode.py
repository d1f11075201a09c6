"""Generate one token per text again and again, with fixed shapes: a CUDA graph or compiled code.

For a single token, Python takes longer to start the operations than the device to run them. A CUDA
graph starts all of them at once, and compiled code for a CPU starts them without Python.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import scaled_dot_product_attention

from headway.attention import dispatch
from headway.attention.arrays import Array, as_numpy
from headway.attention.grid import grid_of
from headway.attention.spec import Spec, used
from headway.models.sampling import CANDIDATES, Sampling, sampled, tokens_of
from headway.torch import ahead
from headway.torch.gpt import GPT
from headway.torch.layers import Cache

SUPPORTED = {"mask", "bias", "scale", "offset"}  # options of attention
EXAMPLE = 16  # the capacity of the caches with which a step is compiled; any number from 2 on


def is_supported(model: GPT) -> bool:
    """Whether a `LastTokens` computes what the model computes, with operations on tensors alone."""
    layers: list[Any] = [block.attention for block in model.blocks]
    masks = [layer.spec.mask for layer in layers]
    bands = {mask.band if mask is not None and mask.is_band else None for mask in masks}
    # One causal band in all layers, which hides the columns after the text.
    has_band = len(bands) == 1 and all(band is not None and band.least >= 0 for band in bands)
    return has_band and all(
        x.attend is dispatch.run and {*used(x.spec)} <= SUPPORTED for x in layers
    )


def drawn(
    logits: Float[Array, "batch vocabulary"],
    prompt_seeds: Int[Array, " batch"],
    step: int,
    sampling: Sampling,
) -> list[int]:
    """Sample the next tokens; the arguments are those of `models.sampling.sampled`.

    On a CPU, NumPy takes about a quarter of PyTorch's time.
    """
    if logits.device.type == "cpu":
        logits, prompt_seeds = as_numpy(logits), as_numpy(prompt_seeds)
    return tokens_of(partial(sampled, logits, prompt_seeds, step, sampling), logits.shape[-1])


@final
class LastTokens(nn.Module):
    """The logits after one more token per text, as a function of tensors alone."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        # Copies of the modules with the same parameters, whose attention is `_SharedMask`.
        self.model = deepcopy(model, {id(p): p for p in model.parameters()})
        self.attention = _SharedMask()
        layers: list[Any] = [block.attention for block in self.model.blocks]
        for layer in layers:
            layer.attend = self.attention

    def compiled(self, *, may_compile: bool) -> Callable[..., Tensor] | None:
        """Return this module compiled for a CPU, one text, and caches of any capacity, or None.

        may_compile: as in `ahead.compiled`.
        """
        config, capacity = self.model.config, Dim("capacity", min=2)
        shape = 1, config.attention.groups, EXAMPLE, config.d_k
        like = next(self.model.parameters())
        arrays = [like.new_zeros(shape) for _ in range(2 * config.layers)]
        inputs = torch.zeros(3, dtype=torch.int64)
        dynamic = None, ({2: capacity},) * len(arrays)
        # The warnings are about the caller of `headway.torch.generate.generate`.
        return ahead.compiled(
            self, [inputs, *arrays], dynamic, may_compile=may_compile, stacklevel=5
        )

    def forward(
        self,
        inputs: Int[Tensor, " inputs"],
        *arrays: Float[Tensor, "batch kv_heads capacity d"],
        starts: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch vocabulary"]:
        """Add the last tokens to the arrays of the caches and return the logits of the next ones.

        inputs: the step, the column of the last tokens, and these. arrays: the keys and the values
        of each layer. starts: as in `Cache`.
        """
        self.attention.allowed = None
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        caches = [Cache.fixed(pair, inputs[1], starts) for pair in pairs]
        logits: Tensor = self.model(inputs[2:, None], caches=caches)[:, -1]
        return logits


@final
class Decoder:
    """The state of generating: a model, and caches that hold all tokens but the last one.

    last_tokens: a `LastTokens`, or compiled code of one, for one text.
    prompt_seeds, sampling: as in `models.sampling.sampled`. On CUDA it runs as a graph; on other
    devices it computes the same without a graph.
    """

    def __init__(
        self,
        last_tokens: Callable[..., Tensor],
        caches: list[Cache],
        prompt_seeds: Int[Tensor, " batch"],
        sampling: Sampling,
    ) -> None:
        self._prompt_seeds, self._sampling = prompt_seeds, sampling
        self._length, starts = int(caches[0].length), caches[0].starts
        # The step, the column of the last tokens, and these, in one array, because each copy to the
        # device takes time.
        self._inputs = torch.zeros(
            2 + len(prompt_seeds), dtype=torch.int64, device=prompt_seeds.device
        )
        self._arrays = [array for cache in caches for array in cache.arrays]
        self._run = last_tokens if starts is None else partial(last_tokens, starts=starts)
        self._logits, self._outputs = prompt_seeds, prompt_seeds  # replaced by the first step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captures = prompt_seeds.is_cuda

    @torch.no_grad()
    def next_tokens(self, step: int, last: list[int]) -> list[int]:
        """Add the last tokens to the caches and return the next ones."""
        self._inputs.copy_(torch.tensor([step, self._length, *last]))
        self._length += 1
        if self._captures and self._graph is None:
            self._capture()
        elif self._graph is not None:
            self._graph.replay()
        else:
            self._compute()

        if self._inputs.device.type == "cpu":
            return drawn(self._logits, self._prompt_seeds, step, self._sampling)

        def sample(candidates: int) -> tuple[Tensor, Tensor]:
            if candidates == CANDIDATES:
                outputs = self._outputs.cpu()  # waits for the step
                return outputs[1:], outputs[0]
            return sampled(self._logits, self._prompt_seeds, step, self._sampling, candidates)

        return tokens_of(sample, self._logits.shape[-1])

    def _compute(self) -> None:
        """Compute the logits and, on a GPU, the next tokens from `_inputs`, without waiting."""
        self._logits = self._run(self._inputs, *self._arrays)
        if self._inputs.device.type != "cpu":
            step = self._inputs[0]
            chosen, status = sampled(self._logits, self._prompt_seeds, step, self._sampling)
            self._outputs = torch.cat([status.reshape(1), chosen])

    def _capture(self) -> None:
        """Compute it, and capture it as a CUDA graph, which computes it from now on."""
        graph = torch.cuda.CUDAGraph()
        # Another thread may use the GPU meanwhile. The outer context restores the stream, which a
        # failure does not.
        with (
            torch.cuda.device(self._prompt_seeds.device),
            torch.cuda.stream(torch.cuda.current_stream()),
        ):
            capture = torch.cuda.graph(graph, capture_error_mode="thread_local")
            stream: Any = capture.capture_stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._compute()  # libraries allocate memory in their first calls
            torch.cuda.current_stream().wait_stream(stream)
            try:
                with capture:
                    self._compute()
                self._graph = graph
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warnings.warn(f"text is generated without a CUDA graph: {error}", stacklevel=2)
                self._captures = False
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()


@final
class _SharedMask:
    """Attention of the last token of each text, with one mask for all layers.

    allowed: the mask of this step, (batch, 1, 1, capacity); None before the first layer.
    """

    def __init__(self) -> None:
        self.allowed: Tensor | None = None

    def __call__(
        self,
        queries: Float[Tensor, "batch heads 1 d_k"],
        keys: Float[Tensor, "batch kv_heads capacity d_k"],
        values: Float[Tensor, "batch kv_heads capacity d_v"],
        spec: Spec,
    ) -> Float[Tensor, "batch heads 1 d_v"]:
        """Compute the context; the last token may always attend to itself."""
        if self.allowed is None:
            assert spec.mask is not None  # `is_supported` ensures this
            self.allowed = spec.mask.on(grid_of(queries, keys, spec))
        mask = self.allowed
        if spec.bias is not None:
            mask = torch.where(mask, spec.bias, -torch.inf)
        grouped = queries.shape[-3] != keys.shape[-3]
        return scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=spec.scale, enable_gqa=grouped
        )
