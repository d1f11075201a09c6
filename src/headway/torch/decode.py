"""Generate one token per text again and again, with fixed shapes, as one CUDA graph.

For a single token, the CPU takes longer to launch a GPU's kernels than the GPU to run them. A graph
launches all of them at once.
"""

import warnings
from copy import deepcopy
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headway.attention import dispatch
from headway.attention.grid import grid_of
from headway.attention.spec import Spec, used
from headway.models.sampling import CANDIDATES, Sampling, sampled, tokens_of
from headway.torch.gpt import GPT
from headway.torch.layers import Cache

SUPPORTED = {"mask", "bias", "scale", "offset"}  # options of attention


def is_supported(model: GPT) -> bool:
    """Whether a `Decoder` computes what the model computes, with nothing but the GPU's kernels."""
    layers: list[Any] = [block.attention for block in model.blocks]
    masks = [layer.spec.mask for layer in layers]
    bands = {mask.band if mask is not None and mask.is_band else None for mask in masks}
    # One causal band in all layers, which hides the columns after the text.
    has_band = len(bands) == 1 and all(band is not None and band.least >= 0 for band in bands)
    return has_band and all(
        x.attend is dispatch.run and {*used(x.spec)} <= SUPPORTED for x in layers
    )


@final
class Decoder:
    """The state of generating: a model, and caches that hold all tokens but the last one.

    prompt_seeds, sampling: as in `models.sampling.sampled`. On other devices than CUDA, it computes
    the same without a graph.
    """

    def __init__(
        self,
        model: GPT,
        caches: list[Cache],
        prompt_seeds: Int[Tensor, " batch"],
        sampling: Sampling,
    ) -> None:
        self._prompt_seeds, self._sampling = prompt_seeds, sampling
        self._length = int(caches[0].length)
        # The step, the column of the last tokens, and these, in one array, because each copy to the
        # device takes time.
        self._inputs = torch.zeros(
            2 + len(prompt_seeds), dtype=torch.int64, device=prompt_seeds.device
        )
        self._caches = [cache.fixed(self._inputs[1]) for cache in caches]
        # Copies of the modules with the same parameters, whose attention is `_SharedMask`.
        self._model = deepcopy(model, {id(p): p for p in model.parameters()})
        self._attention = _SharedMask()
        layers: list[Any] = [block.attention for block in self._model.blocks]
        for layer in layers:
            layer.attend = self._attention
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

        def sample(candidates: int) -> tuple[Tensor, Tensor]:
            if candidates == CANDIDATES:
                outputs = self._outputs.cpu()  # waits for the step
                return outputs[1:], outputs[0]
            return sampled(self._logits, self._prompt_seeds, step, self._sampling, candidates)

        return tokens_of(sample, self._logits.shape[-1])

    def _compute(self) -> None:
        """Compute the logits and the next tokens from `_inputs`; the CPU does not wait for it."""
        self._attention.allowed = None
        tokens = self._inputs[2:, None]
        self._logits = self._model(tokens, caches=self._caches)[:, -1]
        chosen, status = sampled(self._logits, self._prompt_seeds, self._inputs[0], self._sampling)
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
