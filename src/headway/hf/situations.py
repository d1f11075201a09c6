"""Run a model of transformers in the situations in which people run it, and compare the logits.

The expected logits are those of each text alone, whole, with eager attention in float64. A model is
run with each implementation of attention (`eager` and `sdpa` of transformers, Headway's through
`watch`), in each situation and in each data type.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headway.hf.families import quietly
from headway.hf.watch import watch

Verdict = Literal["ok", "wrong", "not finite", "raised", "not applicable"]
IMPLEMENTATIONS = ("eager", "sdpa", "ours")
DTYPES = ("float32", "bfloat16", "float64")
LENGTH, PADDING, CHUNK = 12, 3, 5  # tokens of a text, of the padding of the first text, of a chunk
LARGEST_ROUNDING = 0.1  # of the logits; with more rounding, nothing can be said
NAMES = {"flex": "flex_attention"}  # of implementations in transformers


@dataclass(frozen=True)
class Cell:
    """The result for one implementation, situation and data type.

    error: the largest difference of the logits, relative to the largest logit; None if there are no
    logits to compare. detail: a reason, or an error message.
    """

    implementation: str
    situation: str
    dtype: str
    verdict: Verdict
    error: float | None = None
    detail: str = ""


class NotApplicable(Exception):  # noqa: N818 - a result, not a bug
    """A situation does not occur for a model; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A model and two texts of `LENGTH` tokens. source: for an encoder and a decoder, its text."""

    model: Any
    task: str
    tokens: Tensor
    source: Tensor | None = None

    def output(self, tokens: Tensor, source: Tensor | None = None, **given: Any) -> Any:
        """Return the output of the model."""
        if self.source is None:
            return self.model(input_ids=tokens, **given)
        source = self.source if source is None else source
        return self.model(input_ids=source, decoder_input_ids=tokens, **given)

    def accepts(self, name: str) -> bool:
        """Whether `forward` has an argument of this name."""
        return name in inspect.signature(self.model.forward).parameters

    def needs(self, *tasks: str) -> None:
        """Raise `NotApplicable` if the model has another task."""
        if self.task not in tasks:
            raise NotApplicable(f"it is a {self.task} model")

    def is_recurrent(self) -> bool:
        """Whether a part of it has a state instead of keys and values."""
        kinds = " ".join(getattr(self.model.config, "layer_types", None) or ())
        names = {type(module).__name__.lower() for module in self.model.modules()}
        recurrent = (
            *("mamba", "rwkv", "recurrent", "linearattention", "gateddelta", "xlstm", "ssm"),
            "shortconv",
        )
        is_stateful = getattr(self.model, "_is_stateful", False) or "linear" in kinds
        return is_stateful or any(part in name for part in recurrent for name in names)

    def window(self) -> int | None:
        """Return the number of keys that a query sees in some layer, or None."""
        config = self.model.config
        width = getattr(config, "sliding_window", None)
        is_used = getattr(config, "use_sliding_window", True)
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        return width if width and is_used and "sliding_attention" in kinds else None


@dataclass(frozen=True)
class Part:
    """The logits (tokens, vocabulary) that a situation gave for a part of a text.

    row: of the text. text: the tokens that are the whole text, alone. is_source: `text` is a part
    of the text of the encoder.
    """

    logits: Tensor
    row: int
    text: slice = field(default_factory=lambda: slice(None))
    is_source: bool = False


Situation = Callable[[Subject], list[Part]]

# Families that read more than attention lets them read, by design.
_NEIGHBOURS = "it reads neighbouring tokens outside attention, padding included"
BY_DESIGN = {
    ("convbert", "right padding"): f"{_NEIGHBOURS} (convolutions)",
    ("mobilebert", "right padding"): f"{_NEIGHBOURS} (the embedding of three tokens)",
    ("yoso", "right padding"): f"{_NEIGHBOURS} (a convolution of the values)",
    ("nystromformer", "right padding"): "its landmarks are means over all tokens",
    ("funnel", "right padding"): "it pools neighbouring tokens",
    ("fnet", "right padding"): "its Fourier transform takes no mask",
    ("trocr", "left padding"): "its positions count padding, and cannot be given",
    ("whisper", "left padding"): "its positions count padding, and cannot be given",
    ("cpmant", "right padding"): "it adds 32 prompt tokens to every text",
    ("cpmant", "cache"): "it adds 32 prompt tokens to every text",
    ("cpmant", "chunked prefill"): "it adds 32 prompt tokens to every text",
}


def whole_text(subject: Subject) -> list[Part]:
    """Run two texts at once."""
    return _rows(subject.output(subject.tokens).logits)


def cache(subject: Subject) -> list[Part]:
    """Run token by token with a cache."""
    return _rows(_in_chunks(subject, 1))


def chunked_prefill(subject: Subject) -> list[Part]:
    """Run in chunks of several tokens with a cache."""
    if subject.is_recurrent():
        raise NotApplicable("a recurrent model reads one token at a time after the first chunk")
    return _rows(_in_chunks(subject, CHUNK))


def left_padding(subject: Subject) -> list[Part]:
    """Pad the first text on the left; padding has no positions, as in `generate`."""
    subject.needs("causal")
    if subject.is_recurrent():
        raise NotApplicable("a recurrent model has a state before the text begins")
    mask = _mask(slice(PADDING))
    logits = subject.output(_padded(subject, mask), **_with_positions(subject, mask)).logits
    return [Part(logits[0, PADDING:], 0, slice(PADDING, None)), Part(logits[1], 1)]


def right_padding(subject: Subject) -> list[Part]:
    """Pad the first text on the right."""
    mask, rest = _mask(slice(-PADDING, None)), slice(-PADDING)
    if subject.source is not None:
        source = subject.source.clone()
        source[0, -PADDING:] = 0
        logits = subject.output(subject.tokens, source, attention_mask=mask).logits
        return [Part(logits[0], 0, rest, is_source=True), Part(logits[1], 1)]
    logits = subject.output(_padded(subject, mask), attention_mask=mask).logits
    return [Part(logits[0, rest], 0, rest), Part(logits[1], 1)]


def packed(subject: Subject) -> list[Part]:
    """Run two documents in one row; the positions of the second one begin at 0."""
    subject.needs("causal")
    code = inspect.getsource(sys.modules[type(subject.model).__module__])
    # The mask is told the positions, from which transformers finds the documents.
    finds = re.search(r"mask(_function)?\([^)]*position_ids|\"position_ids\": position_ids", code)
    if not subject.accepts("position_ids") or not finds:
        raise NotApplicable("it does not find documents by their positions")
    if subject.is_recurrent():
        raise NotApplicable("a recurrent model carries its state from one document to the next")
    first, second = subject.tokens[:1, :5], subject.tokens[1:, :7]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    tokens = torch.cat([first, second], dim=1)
    (logits,) = subject.output(tokens, position_ids=positions, use_cache=False).logits
    return [Part(logits[:5], 0, slice(5)), Part(logits[5:], 1, slice(7))]


def window(subject: Subject) -> list[Part]:
    """Run a padded batch of texts that are longer than the window, token by token."""
    subject.needs("causal")
    width = subject.window()
    if width is None or width >= LENGTH - PADDING:
        raise NotApplicable("it has no window that is shorter than the texts")
    mask = _mask(slice(PADDING))
    logits = _in_chunks(replace(subject, tokens=_padded(subject, mask)), 1, mask)
    return [Part(logits[0, PADDING:], 0, slice(PADDING, None)), Part(logits[1], 1)]


def masked_row(subject: Subject) -> list[Part]:
    """Run a text next to a row that is padding only, whose logits must be finite."""
    subject.needs("causal", "masked")
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1] = 0
    logits = subject.output(_padded(subject, mask), attention_mask=mask).logits
    if not torch.isfinite(logits[1]).all() and torch.isfinite(logits[0]).all():
        raise FloatingPointError("the logits of the row that is padding only are NaN")
    return [Part(logits[0], 0)]


SITUATIONS: dict[str, Situation] = {
    "whole text": whole_text,
    "cache": cache,
    "chunked prefill": chunked_prefill,
    "left padding": left_padding,
    "right padding": right_padding,
    "packed documents": packed,
    "window": window,
    "fully masked row": masked_row,
}


def _rows(logits: Tensor) -> list[Part]:
    return [Part(logits[row], row) for row in range(len(logits))]


def _mask(hidden: slice) -> Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, hidden] = 0
    return mask


def _padded(subject: Subject, mask: Tensor) -> Tensor:
    pad = getattr(subject.model.config, "pad_token_id", None) or 0
    return torch.where(mask.bool(), subject.tokens, pad)


def _with_positions(subject: Subject, mask: Tensor) -> dict[str, Tensor]:
    given = {"attention_mask": mask}
    if subject.accepts("position_ids"):
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return given


def _in_chunks(subject: Subject, size: int, mask: Tensor | None = None) -> Tensor:
    """Return the logits of the texts, given in chunks with a cache."""
    subject.needs("causal", "seq2seq")
    past, parts = None, []
    for start in range(0, LENGTH, size):
        end = min(start + size, LENGTH)
        given = {} if mask is None else _with_positions(subject, mask)
        if "position_ids" in given:
            given["position_ids"] = given["position_ids"][:, start:end]
        if mask is not None:
            given["attention_mask"] = mask[:, :end]
        tokens = subject.tokens[:, start:end]
        output = subject.output(tokens, past_key_values=past, use_cache=True, **given)
        past = getattr(output, "past_key_values", None)
        if past is None:
            raise NotApplicable("it returns no cache")
        parts.append(output.logits)
    return torch.cat(parts, dim=1)


def observe(
    model: nn.Module,
    task: str,
    *,
    implementations: Sequence[str] = IMPLEMENTATIONS,
    dtypes: Sequence[str] = DTYPES,
    situations: Sequence[str] = tuple(SITUATIONS),
) -> list[Cell]:
    """Run a model in all situations.

    task: causal, masked or seq2seq. The model is copied for each data type. Raises ValueError if it
    cannot be run at all.
    """
    vocabulary = min(model.config.get_text_config().vocab_size, 99)  # type: ignore[operator, union-attr]
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, vocabulary, (2, LENGTH), generator=random)
    source = tokens.flip(1) if task == "seq2seq" else None
    with torch.no_grad(), quietly():
        reference = _reference(Subject(copy.deepcopy(model), task, tokens, source))
        cells: list[Cell] = []
        in_float32 = Subject(copy.deepcopy(model).float(), task, tokens, source)
        least = _rounding(in_float32, reference)
        for dtype in dtypes:
            subject = Subject(copy.deepcopy(model).to(getattr(torch, dtype)), task, tokens, source)
            # In float64, too, models compute the softmax, norms or states in float32.
            rounding = max(_rounding(subject, reference), least)
            for implementation, name in product(implementations, situations):
                cell = Cell(implementation, name, dtype, "ok")
                cells.append(_observed(subject, cell, reference, rounding))
    return _without_common_errors(cells)


def _reference(subject: Subject) -> Subject:
    """Return the model with eager attention in float64, or in float32 if that does not run."""
    for dtype in (torch.float64, torch.float32):
        subject.model.to(dtype)
        try:
            _switch(subject.model, "eager")
            logits = subject.output(subject.tokens, **_without_cache(subject)).logits
            if torch.isfinite(logits).all():
                return subject
            error = ValueError("its logits are not finite")
        except Exception as raised:  # whatever the code of a family raises
            error = ValueError(f"it raised {type(raised).__name__}: {_line(raised)}")
    raise error


def _rounding(subject: Subject, reference: Subject) -> float:
    """Return the error of whole texts with eager attention; inf if they do not run.

    It is the largest of a few runs in which the embedding is changed by as much as rounding does: a
    mixture of experts may choose other experts because of rounding.
    """
    try:
        _switch(subject.model, "eager")
        weight = subject.model.get_input_embeddings().weight
        saved, errors = weight.clone(), []
        for seed in range(4):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            eps = torch.finfo(weight.dtype).eps * bool(seed)
            weight.copy_(saved * (1 + eps * noise.to(weight.dtype)))
            logits = subject.output(subject.tokens, **_without_cache(subject)).logits
            errors += [_error(part, reference) for part in _rows(logits)]
        weight.copy_(saved)
        return max(errors)
    except Exception:  # the cells say what is wrong
        return float("inf")


def _switch(model: Any, implementation: str) -> None:
    try:
        model.set_attn_implementation(NAMES.get(implementation, implementation))
    except (ValueError, ImportError) as error:
        if implementation != "eager":
            raise NotApplicable(f"it does not support {implementation}: {_line(error)}") from None


def _observed(subject: Subject, cell: Cell, reference: Subject, rounding: float) -> Cell:
    # Other situations add numbers in another order.
    eps = max(torch.finfo(getattr(torch, cell.dtype)).eps, torch.finfo(torch.float32).eps)
    bound = 4 * rounding + 16 * eps
    if LARGEST_ROUNDING < rounding < float("inf"):
        reason = f"rounding alone changes the logits by {rounding:.0e}"
        return replace(cell, verdict="not applicable", detail=reason)
    family = subject.model.config.model_type
    if (family, cell.situation) in BY_DESIGN:
        detail = BY_DESIGN[family, cell.situation]
        return replace(cell, verdict="not applicable", detail=detail)
    is_ours = cell.implementation == "ours"
    try:
        if not is_ours:
            _switch(subject.model, cell.implementation)
        with _watched(subject.model) if is_ours else contextlib.nullcontext():
            parts = SITUATIONS[cell.situation](subject)
        if not all(torch.isfinite(part.logits).all() for part in parts):
            bad = sum(int((~torch.isfinite(part.logits)).sum()) for part in parts)
            count = sum(part.logits.numel() for part in parts)
            return replace(cell, verdict="not finite", detail=f"{bad} of {count} logits are NaN")
        error = max(_error(part, reference) for part in parts)
    except NotApplicable as reason:
        return replace(cell, verdict="not applicable", detail=str(reason))
    except FloatingPointError as error_of_row:
        return replace(cell, verdict="not finite", detail=str(error_of_row))
    except Exception as error_raised:  # whatever the code of a family raises
        if is_ours and "Headway does not support" in str(error_raised):
            return replace(cell, verdict="not applicable", detail=_line(error_raised))
        detail = f"{type(error_raised).__name__}: {_line(error_raised)}"
        return replace(cell, verdict="raised", detail=detail)
    return replace(cell, verdict="ok" if error <= bound else "wrong", error=error)


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(watch(model))
        except ValueError as error:
            raise NotApplicable(_line(error)) from None
        yield


def _without_cache(subject: Subject) -> dict[str, Any]:
    return {"use_cache": False} if subject.accepts("use_cache") else {}


def _error(part: Part, reference: Subject) -> float:
    """Return the largest difference from the text alone, relative to the largest logit."""
    row = slice(part.row, part.row + 1)
    tokens, source = reference.tokens[row], reference.source
    if source is not None:
        source = source[row, part.text] if part.is_source else source[row]
    if not part.is_source:
        tokens = tokens[:, part.text]
    expected = reference.output(tokens, source, **_without_cache(reference)).logits
    largest = expected.abs().max()
    return float((part.logits.double() - expected[0].double()).abs().max() / largest)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _without_common_errors(cells: list[Cell]) -> list[Cell]:
    """Say "not applicable" where a situation raises an error with every implementation."""
    result = []
    for cell in cells:
        same = [c for c in cells if (c.situation, c.dtype) == (cell.situation, cell.dtype)]
        others = [c for c in same if c.verdict != "not applicable"]
        if cell.verdict == "raised" and all(c.verdict == "raised" for c in others):
            cell = replace(cell, verdict="not applicable", detail=f"it raises {cell.detail}")
        result.append(cell)
    return result
