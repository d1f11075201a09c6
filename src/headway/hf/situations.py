"""Run a model of transformers in the situations in which people run it, and compare the logits.

The expected logits are those of each text alone, whole, with eager attention in float64. A model is
run with each implementation of attention (`eager` and `sdpa` of transformers, Headway's through
`watch`), in each situation and in each data type.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headway.hf.families import quietly
from headway.hf.watch import watch
from headway.tracing import trace

Verdict = Literal["ok", "wrong", "not finite", "raised", "not applicable"]
IMPLEMENTATIONS = ("eager", "sdpa", "ours")
DTYPES = ("float32", "bfloat16", "float64")
KINDS = {
    "causal": "a decoder",
    "masked": "a model of masked words",
    "seq2seq": "an encoder-decoder",
}
LENGTH, PADDING, CHUNK = 12, 3, 5  # tokens of a text, of the padding of the first text, of a chunk
LARGEST_ROUNDING = 0.1  # of the logits; with more rounding, most tokens are compared, not all
NAMES = {"flex": "flex_attention", "ours": "eager"}  # of implementations in transformers
# What is traced decides what runs: every step with the formula, the context with a fast kernel.
OURS = {"formula": None, "kernel": "*.context"}


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
    """A model and two texts of `LENGTH` tokens.

    source: for an encoder and a decoder, the texts of the encoder. has_positions: whether the model
    takes position_ids and counts from 0 if it gets none.
    """

    model: Any
    task: str
    tokens: Tensor
    source: Tensor | None = None
    has_positions: bool = False

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
            raise NotApplicable(f"it is {KINDS[self.task]}")

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
        config = self.model.config.get_text_config()
        width = getattr(config, "sliding_window", None)
        is_used = getattr(config, "use_sliding_window", True)
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        return width if width and is_used and "sliding_attention" in kinds else None


@dataclass(frozen=True)
class Part:
    """The logits (tokens, vocabulary) that a situation gave for a part of a text.

    row: of the text. text: the tokens that are the whole text, alone. is_source: `text` is a part
    of the text of the encoder. is_compared: otherwise the logits only have to be finite.
    """

    logits: Tensor
    row: int
    text: slice = field(default_factory=lambda: slice(None))
    is_source: bool = False
    is_compared: bool = True


Situation = Callable[[Subject], list[Part]]

# What is so by design, by family: the situations and the reason.
_PADDING = ("left padding", "right padding")
_NEIGHBOURS = "it reads neighbouring tokens outside attention, padding included"
BY_DESIGN = {
    "convbert": (_PADDING, f"{_NEIGHBOURS} (convolutions)"),
    "mobilebert": (_PADDING, f"{_NEIGHBOURS} (the embedding of three tokens)"),
    "yoso": (_PADDING, f"{_NEIGHBOURS} (a convolution of the values)"),
    "nystromformer": (_PADDING, "its landmarks are means over all tokens"),
    "funnel": (_PADDING, "it pools neighbouring tokens"),
    "fnet": (_PADDING, "its Fourier transform takes no mask"),
    "cpmant": (
        ("right padding", "cache", "chunked prefill"),
        "it adds 32 prompt tokens to every text",
    ),
    "rwkv": (("left padding",), "its state reads padding; it says that it ignores the mask"),
    "prophetnet": (("chunked prefill",), "it refuses several tokens after a cache"),
}


def whole_text(subject: Subject) -> list[Part]:
    """Run two texts at once."""
    return _rows(subject.output(subject.tokens).logits)


def cache(subject: Subject) -> list[Part]:
    """Run token by token with a cache."""
    return _rows(_in_chunks(subject, 1))


def chunked_prefill(subject: Subject) -> list[Part]:
    """Run in chunks of several tokens with a cache."""
    return _rows(_in_chunks(subject, CHUNK))


def left_padding(subject: Subject) -> list[Part]:
    """Pad the first text on the left; padding has no positions, as in `generate`."""
    return _padded_on(subject, slice(PADDING), slice(PADDING, None))


def right_padding(subject: Subject) -> list[Part]:
    """Pad the first text on the right."""
    # Positions that count from 0 are those that a model makes itself.
    return _padded_on(replace(subject, has_positions=False), slice(-PADDING, None), slice(-PADDING))


def packed(subject: Subject) -> list[Part]:
    """Run two documents in one row; the positions of the second one begin at 0."""
    subject.needs("causal")
    if not subject.has_positions:
        raise NotApplicable("it takes no position_ids that count from 0")
    if subject.is_recurrent():
        raise NotApplicable("a recurrent model carries its state from one document to the next")
    first, second = subject.tokens[:1, :5], subject.tokens[1:, :7]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    tokens = torch.cat([first, second], dim=1)
    with _search_for_documents() as searches:
        (logits,) = subject.output(tokens, position_ids=positions, use_cache=False).logits
    if not searches:
        raise NotApplicable("it does not find documents by their positions")
    return [Part(logits[:5], 0, slice(5)), Part(logits[5:], 1, slice(7))]


def window(subject: Subject) -> list[Part]:
    """Run a padded batch of texts that are longer than the window, token by token."""
    subject.needs("causal")
    width = subject.window()
    if width is None or width >= LENGTH - PADDING:
        raise NotApplicable("it has no window that is shorter than the texts")
    mask = _mask(slice(PADDING))
    logits = _in_chunks(replace(subject, tokens=_padded(subject, subject.tokens, mask)), 1, mask)
    return [Part(logits[0, PADDING:], 0, slice(PADDING, None)), Part(logits[1], 1)]


def masked_row(subject: Subject) -> list[Part]:
    """Run a text next to a row that is padding only, whose logits must be finite."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1] = 0
    logits = _with_padding(subject, mask)
    return [Part(logits[0], 0), Part(logits[1], 1, is_compared=False)]


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


def _padded_on(subject: Subject, hidden: slice, kept: slice) -> list[Part]:
    """Run with padding in the first text. hidden: its padding. kept: its other tokens."""
    logits = _with_padding(subject, _mask(hidden))
    if subject.source is not None:  # the text of the decoder is complete
        return [Part(logits[0], 0, kept, is_source=True), Part(logits[1], 1)]
    return [Part(logits[0, kept], 0, kept), Part(logits[1], 1)]


def _with_padding(subject: Subject, mask: Tensor) -> Tensor:
    """Return the logits with a padding mask; with two texts, it is that of the encoder."""
    if not subject.accepts("attention_mask"):
        raise NotApplicable("it takes no attention_mask")
    given = _with_positions(subject, mask)
    logits: Tensor
    if subject.source is not None:
        source = _padded(subject, subject.source, mask)
        logits = subject.output(subject.tokens, source, **given).logits
    else:
        logits = subject.output(_padded(subject, subject.tokens, mask), **given).logits
    return logits


def _padded(subject: Subject, tokens: Tensor, mask: Tensor) -> Tensor:
    pad = getattr(subject.model.config.get_text_config(), "pad_token_id", None) or 0
    return torch.where(mask.bool(), tokens, pad)


def _with_positions(subject: Subject, mask: Tensor) -> dict[str, Tensor]:
    given = {"attention_mask": mask}
    if subject.has_positions:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return given


@contextlib.contextmanager
def _search_for_documents() -> Iterator[list[Tensor]]:
    """Record the position_ids in which transformers searches for several documents."""
    from transformers import masking_utils

    search, searches = masking_utils.find_packed_sequence_indices, []

    def recorded(position_ids: Tensor) -> Tensor | None:
        searches.append(position_ids)
        return search(position_ids)

    masking_utils.find_packed_sequence_indices = recorded
    try:
        yield searches
    finally:
        masking_utils.find_packed_sequence_indices = search


def _in_chunks(subject: Subject, size: int, mask: Tensor | None = None) -> Tensor:
    """Return the logits of the texts, given in chunks with a cache."""
    subject.needs("causal", "seq2seq")
    caches = [name for name in ("past_key_values", "cache_params") if subject.accepts(name)]
    if not caches:
        raise NotApplicable("it takes no past_key_values")
    past, parts = None, []
    for start in range(0, LENGTH, size):
        end = min(start + size, LENGTH)
        given = {} if mask is None else _with_positions(subject, mask)
        if "position_ids" in given:
            given["position_ids"] = given["position_ids"][:, start:end]
        if mask is not None:
            given["attention_mask"] = mask[:, :end]
        tokens = subject.tokens[:, start:end]
        output = subject.output(tokens, use_cache=True, **{caches[0]: past}, **given)
        past = getattr(output, caches[0], None)
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

    task: causal, masked or seq2seq. Copies of the model are run, with its weights rounded to
    bfloat16, so that they are the same in each data type. Raises ValueError if it cannot be run at
    all, or if its logits for a text alone are not finite.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[operator, union-attr]
    if isinstance(context, int) and 0 < context < LENGTH:
        raise ValueError(f"its context of {context} tokens is shorter than the texts of {LENGTH}")
    weights = Weights.of(model)
    vocabulary = min(model.config.get_text_config().vocab_size, 99)  # type: ignore[operator, union-attr]
    random = torch.Generator().manual_seed(1)
    first = 3 if vocabulary > 8 else 0  # the first tokens often have a meaning, such as padding
    tokens = torch.randint(first, vocabulary, (2, LENGTH), generator=random)
    source = tokens.flip(1) if task == "seq2seq" else None
    with torch.no_grad(), quietly():
        subject = Subject(None, task, tokens, source)
        reference = _reference(weights, subject)
        subject = replace(subject, has_positions=reference.subject.has_positions)
        least = _rounding(replace(subject, model=weights.model("float32", "eager")), reference)
        cells: list[Cell] = []
        for dtype in dtypes:
            rounding = least
            if dtype != "float32":
                with contextlib.suppress(Exception):  # the cells say what is wrong
                    in_dtype = replace(subject, model=weights.model(dtype, "eager"))
                    # In float64, too, models compute the softmax, norms or states in float32.
                    measured = _rounding(in_dtype, reference)
                    rounding = max(least, measured, key=lambda rounding: rounding.error)
            for implementation in implementations:
                column = [Cell(implementation, name, dtype, "ok") for name in situations]
                cells += _column(weights, subject, column, reference, rounding)
    return _without_float64(cells)


@dataclass(frozen=True)
class Weights:
    """The parameters and buffers of a model, from which it is made in each data type."""

    kind: Any
    config: Any
    state: dict[str, Tensor]

    @staticmethod
    def of(model: Any) -> Weights:
        """Return the weights of a model, rounded to bfloat16, but not its tables of positions."""
        state = {
            name: value.detach().bfloat16().float() if value.requires_grad else value.detach()
            for name, value in model.state_dict(keep_vars=True).items()
        }
        return Weights(type(model), model.config, state)

    def model(self, dtype: str, implementation: str) -> Any:
        """Make the model as `from_pretrained` does.

        Raises `NotApplicable` if it does not support the implementation.
        """
        name = NAMES.get(implementation, implementation)
        config, number = copy.deepcopy(self.config), getattr(torch, dtype)
        if implementation == "ours" and not self.kind._can_set_attn_implementation():
            raise NotApplicable("it does not call attention through transformers' interface")
        try:
            model = self.kind._from_config(config, attn_implementation=name, dtype=number).eval()
        except (ValueError, ImportError) as error:
            if name == "eager":
                raise
            # Its message is about the next steps, not about this model.
            reason = "" if "does not support" in str(error) else f": {_line(error)}"
            raise NotApplicable(f"it does not support {implementation}{reason}") from None
        if model.config._attn_implementation != name:
            raise NotApplicable(f"it does not support {implementation}")
        if dtype == "bfloat16":  # some parameters stay in float32, as in `from_pretrained`
            for part in model._keep_in_fp32_modules_strict or ():
                for key, parameter in model.named_parameters():
                    if part in key:
                        parameter.data = parameter.data.float()
        if dtype == "float64" and model._can_set_experts_implementation():
            model.set_experts_implementation("eager")  # `grouped_mm` has no float64
        model.load_state_dict(self.state)
        return model


@dataclass(frozen=True)
class Rounding:
    """By how much rounding changes the logits.

    is_of_most: whether `error` is that of the median token of each text. In low precision a few
    tokens of a mixture of experts can get other experts, with which their logits are unrelated.
    """

    error: float
    is_of_most: bool = False


@dataclass(frozen=True)
class Reference:
    """A model with eager attention, and its logits of the texts that were asked for."""

    subject: Subject
    known: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def logits(self, part: Part) -> Tensor:
        """Return the logits of a part of a text, alone."""
        key = (part.row, part.text.start, part.text.stop, part.is_source)
        if key not in self.known:
            row = slice(part.row, part.row + 1)
            tokens, source = self.subject.tokens[row], self.subject.source
            if source is not None:
                source = source[row, part.text] if part.is_source else source[row]
            if not part.is_source:
                tokens = tokens[:, part.text]
            output = self.subject.output(tokens, source, **_without_cache(self.subject))
            self.known[key] = output.logits[0].double()
        return self.known[key]


def _reference(weights: Weights, subject: Subject) -> Reference:
    """Return the model with eager attention in float64, or in float32 if that does not run."""
    for dtype in ("float64", "float32"):
        try:
            subject = replace(subject, model=weights.model(dtype, "eager"))
            logits = subject.output(subject.tokens, **_without_cache(subject)).logits
            if torch.isfinite(logits).all():
                reference = Reference(subject)
                has_positions = _counts_from_0(reference)
                return Reference(replace(subject, has_positions=has_positions))
            error = ValueError("its logits are not finite")
        except Exception as raised:  # whatever the code of a family raises
            error = ValueError(f"it raised {type(raised).__name__}: {_line(raised)}")
    raise error


def _counts_from_0(reference: Reference) -> bool:
    """Whether position_ids that count from 0 are those that the model makes itself."""
    subject = reference.subject
    if subject.source is not None or not subject.accepts("position_ids"):
        return False
    positions = torch.arange(LENGTH).expand(2, -1)
    try:
        logits = subject.output(
            subject.tokens, position_ids=positions, **_without_cache(subject)
        ).logits
        return _error(_rows(logits), reference) < 1e-4
    except Exception:  # whatever a family raises for positions of another shape
        return False


def _rounding(subject: Subject, reference: Reference) -> Rounding:
    """Return the error of whole texts with eager attention.

    It is the largest of a few runs in which the embedding is changed by as much as rounding does: a
    mixture of experts may choose other experts because of rounding.
    """
    weight = subject.model.get_input_embeddings().weight
    saved, runs = weight.clone(), []
    for seed in range(4):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        eps = torch.finfo(weight.dtype).eps * bool(seed)
        weight.copy_(saved * (1 + eps * noise.to(weight.dtype)))
        runs.append(_rows(subject.output(subject.tokens, **_without_cache(subject)).logits))
    weight.copy_(saved)
    largest = max(_error(parts, reference) for parts in runs)
    if largest <= LARGEST_ROUNDING:
        return Rounding(largest)
    return Rounding(max(_error(parts, reference, of_most=True) for parts in runs), is_of_most=True)


def _column(
    weights: Weights, subject: Subject, cells: list[Cell], reference: Reference, rounding: Rounding
) -> list[Cell]:
    """Return the cells of one implementation in one data type."""
    try:
        model = weights.model(cells[0].dtype, cells[0].implementation)
    except Exception as error:  # whatever the code of a family raises
        return [_failed(cell, error) for cell in cells]
    subject = replace(subject, model=model)
    return [_observed(subject, cell, reference, rounding) for cell in cells]


def _observed(subject: Subject, cell: Cell, reference: Reference, rounding: Rounding) -> Cell:
    # Other situations add numbers in another order.
    eps = max(torch.finfo(getattr(torch, cell.dtype)).eps, torch.finfo(torch.float32).eps)
    bound = Rounding(4 * rounding.error + 16 * eps, rounding.is_of_most)
    if rounding.error > LARGEST_ROUNDING:
        reason = f"rounding alone changes the logits by more than {LARGEST_ROUNDING:.0%}"
        return replace(cell, verdict="not applicable", detail=reason)
    names, reason = BY_DESIGN.get(subject.model.config.model_type, ((), ""))
    if cell.situation in names:
        return replace(cell, verdict="not applicable", detail=reason)
    if cell.implementation != "ours":
        return _judged(subject, cell, reference, bound, contextlib.nullcontext())
    results = []
    for name, only in OURS.items():
        result = _judged(subject, cell, reference, bound, _watched(subject.model, only))
        if result.verdict in ("wrong", "not finite"):
            result = replace(result, detail=f"{name}: {result.detail}".removesuffix(": "))
        results.append(result)
    worst = ("raised", "not applicable", "not finite", "wrong", "ok")
    return min(results, key=lambda result: (worst.index(result.verdict), -(result.error or 0)))


def _judged(
    subject: Subject,
    cell: Cell,
    reference: Reference,
    bound: Rounding,
    context: contextlib.AbstractContextManager[None],
) -> Cell:
    """Run a situation in a context and compare the logits."""
    try:
        with context:
            parts = SITUATIONS[cell.situation](subject)
        compared = [part for part in parts if part.is_compared]
        bad = sum(int((~torch.isfinite(part.logits)).sum()) for part in compared)
        if bad:
            count = sum(part.logits.numel() for part in compared)
            return replace(cell, verdict="not finite", detail=f"{bad} of {count} logits are NaN")
        error = _error(compared, reference, bound.is_of_most)
    except Exception as raised:  # whatever the code of a family raises
        return _failed(cell, raised)
    if error > bound.error and cell.situation == "left padding" and not subject.has_positions:
        reason = "its positions count padding, and cannot be given"
        return replace(cell, verdict="not applicable", detail=reason)
    if error > bound.error:
        return replace(cell, verdict="wrong", error=error)
    if not all(torch.isfinite(part.logits).all() for part in parts):
        detail = "the logits of the row of padding are NaN, those of the other row are right"
        return replace(cell, verdict="not finite", error=error, detail=detail)
    return replace(cell, verdict="ok", error=error)


def _failed(cell: Cell, error: Exception) -> Cell:
    """Return the cell for an error."""
    is_ours = cell.implementation == "ours"
    if is_ours and isinstance(error, LookupError):  # the trace met no attention
        error = NotApplicable("no attention is called through transformers' interface")
    is_unsupported = is_ours and "Headway does not support" in str(error)
    if isinstance(error, NotApplicable) or is_unsupported:
        return replace(cell, verdict="not applicable", detail=_line(error))
    return replace(cell, verdict="raised", detail=f"{type(error).__name__}: {_line(error)}")


@contextlib.contextmanager
def _watched(model: nn.Module, only: str | None) -> Iterator[None]:
    with watch(model), trace(only=only):
        yield


def _without_cache(subject: Subject) -> dict[str, Any]:
    return {"use_cache": False} if subject.accepts("use_cache") else {}


def _error(parts: list[Part], reference: Reference, of_most: bool = False) -> float:
    """Return the largest difference from the texts alone, relative to the largest logit.

    of_most: the difference of the median token of each part.
    """
    errors = []
    for part in parts:
        expected = reference.logits(part)
        if part.logits.shape != expected.shape:
            sizes = (*part.logits.shape,), (*expected.shape,)
            raise RuntimeError(f"logits have the shape {sizes[0]}, expected {sizes[1]}")
        of_tokens = (part.logits.double() - expected).abs().amax(-1) / expected.abs().max()
        errors.append(float(of_tokens.median() if of_most else of_tokens.max()))
    return max(errors)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _without_float64(cells: list[Cell]) -> list[Cell]:
    """Say "not applicable" if a model does not run in float64 at all, which few people need."""
    key = ("eager", "whole text", "float64", "raised")
    if all((c.implementation, c.situation, c.dtype, c.verdict) != key for c in cells):
        return cells
    return [
        replace(cell, verdict="not applicable", detail=f"in float64 it raises {cell.detail}")
        if (cell.dtype, cell.verdict) == ("float64", "raised")
        else cell
        for cell in cells
    ]
