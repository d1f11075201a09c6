"""Tracers: each runs a text through a model and returns the trace for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from headway import engines
from headway.attention.arrays import Array, as_numpy
from headway.attention.positions import sinusoidal
from headway.data.pairs import FIRST, START, encoded
from headway.engines import DType, Name
from headway.explore import default_text, matrices, trace_file
from headway.explore.edits import EDITS, Edit, apply_all
from headway.explore.lens import lens
from headway.explore.trace_file import Manifest, Tensors
from headway.hf.stored import StoredModel
from headway.ladder.differences import what_differs
from headway.ladder.rung import SENTENCE, run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.models.gpt import SINUSOIDAL
from headway.tracing import edit, trace
from headway.training import checkpoints

if TYPE_CHECKING:
    from headway.training.runs import Run

LOGITS = 32 * 2**20  # bytes of logits in a trace; of a longer text only the last positions
PARAMETERS = 256 * 2**20  # the maximum bytes of parameters in a trace
WRITE, WRITTEN = 24, 200  # generated tokens: the default and the maximum
WORDS = 32  # the maximum on the ladder


@dataclass(frozen=True)
class TraceRequest:
    """A text, edits of the model, and how to generate. Raises ValueError for invalid numbers.

    write: the number of tokens to generate; the rest as in `models.sampling.sample`. other: of the
    second of two models; see `Compared`.
    """

    text: str
    edits: tuple[Edit, ...] = ()
    write: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0
    other: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.write <= WRITTEN:
            raise ValueError(f"write must be from 0 to {WRITTEN} (got {self.write})")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and below 2^32 (got {self.seed})")


Stop = Callable[[], None]  # raises an error if the result is no longer needed


def never_stop() -> None:
    """Continue."""


class Tracer(Protocol):
    """Something that the page can show."""

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        """Return the tensors by the names of their steps, and the manifest.

        Raises ValueError for an invalid text.
        """
        ...


@final
class ModelTracer:
    """The last checkpoint of a run, or the model of a Hugging Face folder.

    device, dtype: as in `StoredModel.load`. Raises ValueError if the model cannot be loaded.
    """

    def __init__(
        self,
        stored: StoredModel,
        engine: Name = "torch",
        device: str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.stored, self.config, self.tokenizer = stored, stored.gpt, stored.tokenizer
        self.title = trace_file.display(stored.name.encode(errors="surrogateescape"))
        self.step = stored.step
        self.engine = engines.engine_named(engine)
        self.model = stored.load(engine, device, dtype)
        vocabulary = min(self.config.vocabulary, self.tokenizer.vocabulary)
        tokens = trace_file.token_records(range(vocabulary), self.tokenizer)
        self._vocabulary = [token["display"] for token in tokens]

    def default_text(self) -> str:
        """Return a sentence of the training text, else a plain English one, else generate a text.

        Raises ValueError if the model generates nothing readable.
        """
        run, context = self.stored.run, self.config.context
        text = default_text.sentence(run, self.tokenizer, context) if run else None
        text = text or default_text.plain(self.tokenizer, context, self.encode)
        if text:
            return text
        if self.config.is_masked:
            raise ValueError("the model predicts masked words and generates no text: give a text")
        bos = self.tokenizer.bos
        start = self.tokenizer.encode("\n") if bos is None else np.array([bos])
        written = self._written(start, TraceRequest("", write=16), never_stop)
        text = self.tokenizer.decode(written).replace("\ufffd", "")
        text = text.strip() or text
        while len(self.tokenizer.prompt(text)) > self.config.context:
            text = text[:-1]
        if not text:
            raise ValueError("the model generates no readable text: give a text")
        return text

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        """Trace the text through the edited model, and generate a continuation."""
        config = self.config
        tokens = self.encode(request.text)
        if not 1 <= len(tokens) <= config.context:
            raise ValueError(
                f"the text must have 1 to {config.context:,} tokens (it has {len(tokens):,})"
            )

        def stopping(value: Array) -> Array:
            stop()
            return value

        try:
            with apply_all(request.edits):
                with edit({"*after_*": stopping}):
                    tensors, manifest = trace_file.record(
                        lambda part: self.engine.logits(self.model, tokens[None, part]),
                        tokens,
                        keep={one.attention for one in request.edits},
                    )
                # Outside of `stopping`, so that it is compiled if there are no edits.
                written = self._written(tokens, request, stop)
        except LookupError as error:
            raise ValueError(f"this edit does not apply to this model: {error}") from None
        tensors |= self._parameters(tensors)
        most = max(1, LOGITS // tensors["logits"][0, 0].nbytes)
        tensors["logits"] = tensors["logits"][:, -most:]
        tensors |= lens(tensors, config, partial(self.engine.readout, self.model), stop)
        manifest |= {
            "kind": "model",
            "title": self.title,
            "path": None if self.stored.run else str(self.stored.path),
            "model": asdict(config),
            "mask": self.tokenizer.mask if config.is_masked else None,
            "rung": self.stored.rung,
            "step": self.step,
            "validation": self.stored.validation,
            "text": request.text,
            "tokens": trace_file.token_records(tokens, self.tokenizer),
            "vocabulary": self._vocabulary,
            "changes": changes(tensors),
            "edits": [asdict(one) for one in request.edits],
            "edit_kinds": [
                {
                    "name": name,
                    "shown": list(kind.shown),
                    "label": kind.label,
                    "heads": kind.heads,
                    "without": kind.without,
                }
                for name, kind in EDITS.items()
            ],
            "written": trace_file.token_records(written, self.tokenizer),
            "sampling": {
                name: getattr(request, name) for name in ("write", "temperature", "top_k", "seed")
            },
        }
        return tensors, manifest

    def _parameters(self, steps: Tensors) -> Tensors:
        """Return the parameters that the page shows: the matrices of attention, the norms before
        them, and `position`, the encodings that are added to the embeddings. Empty if they need
        more than PARAMETERS bytes."""
        named = self.engine.parameters(self.model)
        shown = {name: value for name, value in named.items() if "attention" in name}
        if sum(4 * prod(value.shape) for value in shown.values()) > PARAMETERS:
            return {}
        tensors = matrices.of_attentions(steps, shown)
        tensors |= {name: as_numpy(p) for name, p in shown.items() if "attention_norm." in name}
        embedded = steps["embedded"]
        positions = np.arange(embedded.shape[-2])
        if self.config.positions.kind == "learned":
            tensors["position"] = as_numpy(named["position_embedding.weight"])[None, positions]
        if self.config.positions.kind == "sinusoidal":
            encoding = sinusoidal(positions, self.config.width, like=embedded)
            tensors["position"] = encoding[None] * SINUSOIDAL
        return tensors

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens that the model reads."""
        if self.config.is_masked:
            return self.tokenizer.with_special_tokens(text)
        return self.tokenizer.prompt(text)

    def _written(self, tokens: np.ndarray, request: TraceRequest, stop: Stop) -> list[int]:
        """Return the generated tokens after these tokens; none if the model cannot generate."""
        written: list[int] = []
        if self.config.is_masked:
            return written
        for (token,) in self.engine.generate(
            self.model,
            [tokens],
            tokens=request.write,
            temperature=request.temperature,
            top_k=request.top_k,
            seed=request.seed,
        ):
            stop()
            written.append(token)
        return written


@final
class TranslationTracer:
    """The last checkpoint of a translation model.

    Raises ValueError if there is none, and for the kinds without attention between sentences.
    """

    def __init__(self, run: Run) -> None:
        from headway.torch.weights import load  # late: PyTorch takes seconds to load

        self.run, self.config, self.tokenizer = run, run.config, run.tokenizer
        kind = self.config.seq2seq.kind
        if kind in ("rnn", "encoder"):
            raise ValueError(f"{run.path} is of kind {kind}, which has no attention to the source")
        checkpoint = checkpoints.latest(run.checkpoints)
        self.step = checkpoints.step_of(checkpoint)
        self.model = load(run, checkpoint).eval()

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        """Trace the source through the encoder, and its translation through the decoder."""
        import torch  # late: PyTorch takes seconds to load

        from headway.torch.translate import read, translate

        if request.edits:
            raise ValueError("a translation cannot be edited")
        source = encoded(request.text, self.tokenizer)
        if not request.text.strip():
            raise ValueError("the sentence is empty: give some words")
        (translation,) = translate(self.model, [source])
        target = translation.tokens[: self.config.model.context - 1]
        stop()
        with torch.no_grad(), trace() as steps:
            memory = read(self.model, [source])
            self.model.decode(torch.tensor([[START, *target]]), memory, self.model.begin(memory))
        if self.config.seq2seq.kind == "bahdanau":
            tensors, manifest = self._joined(steps)
        else:
            ids = {"encoder.": source.tolist(), "decoder.": [START, *target]}
            tensors, manifest = trace_file.describe(steps, ids)
        written = self.tokenizer.decode([token - FIRST for token in target])
        last = "⟨end⟩" if translation.complete else "⟨cut⟩"
        records = self._records(target)
        return tensors, manifest | {
            "kind": "translation",
            "title": f"{trace_file.display(self.run.path.name.encode())}: {written}",
            "model": asdict(self.config.model),
            "rung": None,
            "step": self.step,
            "text": request.text,
            "key_tokens": [*self._records(source[:-1].tolist()), {"display": "⟨end⟩"}],
            "tokens": [*records, {"display": last}],
            "inputs": [{"display": "⟨start⟩"}, *records],
        }

    def _records(self, tokens: list[int]) -> list[Manifest]:
        return trace_file.token_records((token - FIRST for token in tokens), self.tokenizer)

    def _joined(self, steps: Any) -> tuple[Tensors, Manifest]:
        """Join the steps of a decoder that attends once per word: one row per word."""
        layer, tensors = "decoder.attention", {}
        for name in ("queries", "keys", "values", "scores", "weights", "context"):
            value = as_numpy(steps[f"{layer}.{name}"])  # ([words,] 1, 1, rows, columns)
            value = value.reshape(-1, *value.shape[-2:])
            matrix = value[0] if name in ("keys", "values") else value[:, 0]
            tensors[f"{layer}.{name}"] = matrix[None, None]
        shapes = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
        tensors[f"{layer}.v"] = as_numpy(self.model.decoder.attention.v)
        options = dict.fromkeys(("softcap", "mask", "allowed", "bias"))
        options |= {"scale": 1.0, "normalizer": "softmax", "offset": 0, "heads": 1, "kv_heads": 1}
        options |= {"recomputable": False, "additive": f"{layer}.v"}
        attentions = {layer: options}
        return tensors, {"steps": shapes, "attentions": attentions, "overview": trace_file.OVERVIEW}


@final
class LadderTracer:
    """All rungs, with the parameters of their worked examples."""

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        """Trace the words of a text. Raises ValueError for none or too many."""
        if request.edits or request.write:
            raise ValueError("the ladder cannot be edited and generates nothing")
        tensors, manifest = _ladder(request.text, stop)
        return tensors, manifest | {"kind": "ladder", "title": "the ladder", "text": request.text}


@final
@dataclass(frozen=True)
class WithLadder:
    """A tracer that adds the ladder on the book's sentence, to which the page refers."""

    tracer: Tracer

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        """Return both traces in one."""
        tensors, manifest = self.tracer.trace(request, stop)
        rungs, ladder = _ladder(SENTENCE, stop)
        return tensors | rungs, {
            **manifest,
            "ladder": ladder["ladder"],
            "steps": manifest["steps"] + ladder["steps"],
            "attentions": manifest["attentions"] | ladder["attentions"],
        }


@final
@dataclass(frozen=True)
class Compared:
    """A model and another one, which the page shows next to it; the request says which one."""

    tracer: Tracer
    other: ModelTracer

    def trace(self, request: TraceRequest, stop: Stop = never_stop) -> tuple[Tensors, Manifest]:
        """Trace one of the models. Raises ValueError if their tokens of the text differ."""
        if request.other:
            return self.other.trace(replace(request, other=False), stop)
        tensors, manifest = self.tracer.trace(request, stop)
        tokens = [token["id"] for token in manifest["tokens"]]
        others = self.other.encode(request.text).tolist()
        if tokens != others:
            raise ValueError(
                f"the tokens differ ({len(tokens)} of {manifest['title']}, {len(others)} of "
                f"{self.other.title}): compare models with the same tokenizer"
            )
        return tensors, manifest | {"other": self.other.title}


def _ladder(text: str, stop: Stop) -> tuple[Tensors, Manifest]:
    """Trace the words of a text through every rung."""
    words, inputs = words_and_inputs(text)
    if not 1 <= len(words) <= WORDS:
        raise ValueError(f"the text must have 1 to {WORDS} words (it has {len(words)})")
    tensors: Tensors = {"inputs": inputs}
    steps: list[list[Any]] = [["inputs", list(inputs.shape)]]
    attentions: Manifest = {}
    rungs = []
    for name, rung in LADDER.items():
        stop()
        _, trace_of_rung, context = run_example(rung, text)
        prefix = f"ladder.{name}."
        values, description = trace_file.describe(trace_of_rung)
        parameters, spec, _ = rung.example()
        values["result"] = context
        values |= {f"parameters.{key}": matrix for key, matrix in parameters.items()}
        tensors |= {prefix + step: tensor for step, tensor in values.items()}
        steps += [[prefix + step, list(tensor.shape)] for step, tensor in values.items()]
        for layer, options in description["attentions"].items():
            attentions[f"{prefix}{layer}".rstrip(".")] = options
        learned = matrices.of_attentions(values, parameters)
        tensors |= {prefix + step: matrix for step, matrix in learned.items()}
        rungs.append(
            {key: getattr(rung, key) for key in ("name", "idea", "equation", "source")}
            | {"parameters": sorted(parameters), "dropout": spec.dropout}
            | {"differs": what_differs(rung, text)}
        )
    shown = [trace_file.display(word.encode(errors="surrogatepass")) for word in words]
    tokens = [{"display": word} for word in shown]
    ladder = {"tokens": tokens, "text": " ".join(shown), "rungs": rungs}
    manifest = {"steps": steps, "attentions": attentions, "tokens": tokens, "ladder": ladder}
    return tensors, manifest | {"overview": trace_file.OVERVIEW}


def changes(tensors: Tensors) -> dict[str, list[float]]:
    """Return how much the attention and the MLP of each layer change the residual stream: the norm
    of the update relative to the norm of the stream, the mean over the tokens. Layers without the
    stream after both of them are left out."""
    names = [name for name in tensors if name.endswith("embedded") or ".after_" in name]
    result: dict[str, list[float]] = {}
    for before, after in pairwise(names):
        if after.endswith("embedded"):  # another stack of layers
            continue
        old, new = tensors[before].astype(np.float64), tensors[after].astype(np.float64)
        share = np.linalg.norm(new - old, axis=-1) / np.maximum(np.linalg.norm(old, axis=-1), 1e-30)
        if np.isfinite(share).all():  # JSON knows no NaN
            result.setdefault(after.rpartition(".")[0], []).append(float(share.mean()))
    return {layer: shares for layer, shares in result.items() if len(shares) == 2}
