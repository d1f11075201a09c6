"""Generate one token per text again and again, with fixed shapes, as one CUDA graph.

For a single token, the CPU takes longer to launch a GPU's kernels than the GPU to run them. A graph
launches all of them at once.
"""

import warnings
from collections.abc import Callable
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
    has_slopes = model.config.positions.kind == "alibi"  # which are copied to the GPU
    return not has_slopes and all(
        x.attend is dispatch.run and {*used(x.spec)} <= SUPPORTED for x in layers
    )


@final
class Decoder:
    """The state of generating: a model, and caches that hold all tokens but the last one.

    own, how: as in `models.sampling.sampled`. On other devices than CUDA, it computes the same
    without a graph.
    """

    def __init__(
        self, model: GPT, caches: list[Cache], own: Int[Tensor, " batch"], how: Sampling
    ) -> None:
        self._own, self._how, self._length = own, how, int(caches[0].length)
        # The step, the column of the last tokens, and these, in one array, because each copy to the
        # device takes time.
        self._inputs = torch.zeros(2 + len(own), dtype=torch.int64, device=own.device)
        self._caches = [cache.fixed(self._inputs[1]) for cache in caches]
        # Modules of its own with the same parameters: in all layers, attention has the same mask.
        self._model = deepcopy(model, {id(p): p for p in model.parameters()})
        layers: list[Any] = [block.attention for block in self._model.blocks]
        for layer in layers:
            layer.attend = self._attend
        self._allowed: Tensor | None = None
        self._logits, self._outputs = own, own  # replaced by the first step
        self._run: Callable[[], None] = self._capture if own.is_cuda else self._compute

    @torch.no_grad()
    def next_tokens(self, step: int, last: list[int]) -> list[int]:
        """Add the last tokens to the caches and return the next ones."""
        self._inputs.copy_(torch.tensor([step, self._length, *last]))
        self._length += 1
        self._run()

        def sample(candidates: int) -> tuple[Tensor, Tensor]:
            if candidates == CANDIDATES:
                outputs = self._outputs.cpu()  # waits for the step
                return outputs[1:], outputs[0]
            return sampled(self._logits, self._own, step, self._how, candidates)

        return tokens_of(sample, self._logits.shape[-1])

    def _compute(self) -> None:
        """Compute the logits and the next tokens from `_inputs`; the CPU does not wait for it."""
        self._allowed = None
        tokens = self._inputs[2:, None]
        self._logits = self._model(tokens, caches=self._caches)[:, -1]
        chosen, status = sampled(self._logits, self._own, self._inputs[0], self._how)
        self._outputs = torch.cat([status.reshape(1), chosen])

    def _capture(self) -> None:
        """Compute it, and capture it as a CUDA graph, which computes it from now on."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate memory in their first calls
            self._compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._compute()
            self._run = graph.replay
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(f"text is generated without a CUDA graph: {error}", stacklevel=2)
            self._run = self._compute
        self._run()

    def _attend(
        self,
        queries: Float[Tensor, "batch heads 1 d_k"],
        keys: Float[Tensor, "batch kv_heads capacity d_k"],
        values: Float[Tensor, "batch kv_heads capacity d_v"],
        spec: Spec,
    ) -> Float[Tensor, "batch heads 1 d_v"]:
        """Attention of the last token of each text, which may always attend to itself."""
        if self._allowed is None and spec.mask is not None:
            self._allowed = spec.mask.on(grid_of(queries, keys, spec))
        mask = self._allowed
        if spec.bias is not None:
            mask = spec.bias if mask is None else torch.where(mask, spec.bias, -torch.inf)
        grouped = queries.shape[-3] != keys.shape[-3]
        return scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=spec.scale, enable_gqa=grouped
        )
