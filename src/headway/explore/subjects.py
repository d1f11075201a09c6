"""What a page can be opened on, and what it asks: a text in, a trace out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from headway import engines
from headway.attention.arrays import Array, as_numpy
from headway.data.pairs import FIRST, START, encoded
from headway.engines import Name
from headway.explore import trace_file
from headway.explore.edits import EDITS, Edit, all_opened
from headway.explore.trace_file import Manifest, Tensors
from headway.ladder.rung import SENTENCE, run_example, words_and_inputs
from headway.ladder.rungs import LADDER
from headway.tracing import edit, trace
from headway.training import checkpoints

if TYPE_CHECKING:
    from headway.training.runs import Run

LOGITS = 32 * 2**20  # bytes of logits in a trace: of a longer text the last positions are kept
WRITE, WRITTEN = 24, 200  # tokens written after a text, and how many there may be
WORDS = 32  # of a text on the ladder


@dataclass(frozen=True)
class Ask:
    """A text, changes in the model, and how to write on. Raises ValueError for what cannot be.

    write: new tokens after the text, drawn as in `models.sampling.sample`.
    """

    text: str
    edits: tuple[Edit, ...] = ()
    write: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.write <= WRITTEN:
            raise ValueError(f"0 to {WRITTEN} tokens are written at once: {self.write} are not")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"a seed is from 0 to below 2^32: {self.seed} is not")


Stop = Callable[[], None]  # raises when the answer is no longer wanted


def go_on() -> None:
    """The answer is still wanted."""


class Subject(Protocol):
    """Something that a page can be opened on."""

    def trace(self, ask: Ask, stop: Stop = go_on) -> tuple[Tensors, Manifest]:
        """The tensors by the names of their steps, shaped as they were traced, and the manifest.

        Raises ValueError for a text that it cannot read.
        """
        ...


@final
class RunSubject:
    """A trained run at its last checkpoint. Raises ValueError when it has none."""

    def __init__(self, run: Run, engine: Name = "torch") -> None:
        self.run, self.config, self.tokenizer = run, run.config, run.tokenizer
        checkpoint = checkpoints.latest(run.checkpoints)
        self.step = int(checkpoint.name.removeprefix("step-"))
        self.engine = engines.engine_named(engine)
        self.model = self.engine.load(run, checkpoint)
        vocabulary = min(self.config.model.vocabulary, self.tokenizer.vocabulary)
        tokens = trace_file.spelled(range(vocabulary), self.tokenizer)
        self._vocabulary = [token["display"] for token in tokens]

    def own_words(self) -> str:
        """A text for those who give none: what the run writes by itself.

        Raises ValueError when that is nothing that one could read.
        """
        written = list(self._written([*self.tokenizer.encode("\n")], Ask("", write=16), go_on))
        text = self.tokenizer.decode(written).replace("\ufffd", "")
        text = text.strip() or text
        while len(self.tokenizer.encode(text)) > self.config.model.context:
            text = text[:-1]
        if not text:
            raise ValueError("the run writes nothing that could be read: give a text")
        return text

    def trace(self, ask: Ask, stop: Stop = go_on) -> tuple[Tensors, Manifest]:
        """The text through the model, changed as asked, and what it writes on."""
        config = self.config.model
        tokens = self.tokenizer.encode(ask.text)
        if not 1 <= len(tokens) <= config.context:
            raise ValueError(
                f"the text has {len(tokens):,} tokens, the model sees 1 to {config.context:,}: "
                "give another text"
            )
        whole = tokens[None]

        def stopping(value: Array) -> Array:
            stop()
            return value

        try:
            with all_opened(ask.edits):
                with edit({"*after_*": stopping}):
                    tensors, manifest = trace_file.record(
                        lambda part: self.engine.logits(self.model, whole[:, part]),
                        len(tokens),
                        keep={each.attention for each in ask.edits},
                    )
                # Outside, so that without changes it is compiled; it stops between two tokens.
                written = list(self._written([*tokens], ask, stop))
        except LookupError as error:
            raise ValueError(f"this model cannot be changed so: {error}") from None
        most = max(1, LOGITS // tensors["logits"][0, 0].nbytes)
        tensors["logits"] = tensors["logits"][:, -most:]
        logged = [line["validation"] for line in self.run.logged() if line["validation"]]
        manifest |= {
            "kind": "model",
            "title": trace_file.drawn(self.run.path.name.encode(errors="surrogateescape")),
            "model": asdict(config),
            "rung": self.config.rung,
            "step": self.step,
            "validation": logged[-1] if logged else None,
            "text": ask.text,
            "tokens": trace_file.spelled(tokens, self.tokenizer),
            "vocabulary": self._vocabulary,
            "changes": changes(tensors),
            "edits": [asdict(each) for each in ask.edits],
            "edit_kinds": [[name, kind.step, kind.label] for name, kind in EDITS.items()],
            "written": trace_file.spelled(written, self.tokenizer),
            "sampling": {
                name: getattr(ask, name) for name in ("write", "temperature", "top_k", "seed")
            },
        }
        return tensors, manifest

    def _written(self, tokens: list[int], ask: Ask, stop: Stop) -> Iterator[int]:
        steps = self.engine.generate(
            self.model,
            [np.array(tokens)],
            tokens=ask.write,
            temperature=ask.temperature,
            top_k=ask.top_k,
            seed=ask.seed,
        )
        for (token,) in steps:
            stop()
            yield token


@final
class TranslationSubject:
    """A trained translator at its last checkpoint: what each word looked at in both sentences.

    Raises ValueError when it has none, and for the kinds without attention between sentences.
    """

    def __init__(self, run: Run) -> None:
        from headway.torch.weights import load  # late: PyTorch takes seconds to load

        self.run, self.config, self.tokenizer = run, run.config, run.tokenizer
        kind = self.config.model.kind
        if kind in ("rnn", "encoder"):
            raise ValueError(f"{run.path} is of kind {kind}, in which no word looks at the source")
        checkpoint = checkpoints.latest(run.checkpoints)
        self.step = int(checkpoint.name.removeprefix("step-"))
        self.model = load(run, checkpoint).eval()

    def trace(self, ask: Ask, stop: Stop = go_on) -> tuple[Tensors, Manifest]:
        """The source through the encoder, and its translation through the decoder."""
        import torch  # late: PyTorch takes seconds to load

        from headway.torch.translate import read, translate

        if ask.edits:
            raise ValueError("a translation has nothing to edit")
        source = encoded(ask.text, self.tokenizer)
        if not ask.text.strip():
            raise ValueError("a sentence is empty: give some words")
        (said,) = translate(self.model, [source])
        target = said.tokens[: self.config.model.context - 1]
        stop()
        with torch.no_grad(), trace() as steps:
            memory = read(self.model, [source])
            self.model.decode(torch.tensor([[START, *target]]), memory, self.model.begin(memory))
        if self.config.model.kind == "bahdanau":
            tensors, manifest = self._one_by_one(steps)
        else:
            tensors, manifest = trace_file.described(steps)
        written = self.tokenizer.decode([token - FIRST for token in target])
        last = "⟨end⟩" if said.whole else "⟨cut⟩"  # as long as the model's context
        spelled = self._spelled(target)
        return tensors, manifest | {
            "kind": "translation",
            "title": f"{trace_file.drawn(self.run.path.name.encode())}: {written}",
            "model": asdict(self.config.model),
            "rung": None,
            "step": self.step,
            "text": ask.text,
            "key_tokens": [*self._spelled(source[:-1].tolist()), {"display": "⟨end⟩"}],
            "tokens": [*spelled, {"display": last}],
            "inputs": [{"display": "⟨start⟩"}, *spelled],
        }

    def _spelled(self, tokens: list[int]) -> list[Manifest]:
        return trace_file.spelled((token - FIRST for token in tokens), self.tokenizer)

    def _one_by_one(self, steps: Any) -> tuple[Tensors, Manifest]:
        """The steps of a decoder that looks once a word, as one matrix: a row a word."""
        layer, tensors = "decoder.attention", {}
        for name in ("queries", "keys", "values", "scores", "weights", "context"):
            found = as_numpy(steps[f"{layer}.{name}"])  # ([words,] 1, 1, rows, columns)
            found = found.reshape(-1, *found.shape[-2:])
            whole = found[0] if name in ("keys", "values") else found[:, 0]
            tensors[f"{layer}.{name}"] = whole[None, None]
        tensors[f"{layer}.v"] = as_numpy(self.model.decoder.attention.v)
        facts: Manifest = {
            "scale": 1.0,
            "softcap": None,
            "normalizer": "softmax",
            "mask": None,
            "offset": 0,
        }
        facts |= {"heads": 1, "kv_heads": 1, "allowed": None, "bias": None}
        facts |= {"recomputable": False, "additive": f"{layer}.v"}
        shapes = [[name, list(t.shape)] for name, t in tensors.items() if name != f"{layer}.v"]
        attentions = {layer: facts}
        return tensors, {"steps": shapes, "attentions": attentions, "overview": trace_file.OVERVIEW}


@final
class LadderSubject:
    """The rungs, each with the parameters of its worked example."""

    def trace(self, ask: Ask, stop: Stop = go_on) -> tuple[Tensors, Manifest]:
        """The words of the text through every rung. Raises ValueError for none or too many."""
        if ask.edits or ask.write:
            raise ValueError("the ladder has nothing to edit, and writes nothing")
        tensors, manifest = _climbed(ask.text, stop)
        return tensors, manifest | {"kind": "ladder", "title": "the ladder", "text": ask.text}


@final
@dataclass(frozen=True)
class BesideLadder:
    """A subject with the ladder on the book's sentence in its traces, for the page to refer to."""

    subject: Subject

    def trace(self, ask: Ask, stop: Stop = go_on) -> tuple[Tensors, Manifest]:
        """The subject's trace and the ladder's in one."""
        tensors, manifest = self.subject.trace(ask, stop)
        rungs, ladder = _climbed(SENTENCE, stop)
        return tensors | rungs, {
            **manifest,
            "ladder": ladder["ladder"],
            "steps": manifest["steps"] + ladder["steps"],
            "attentions": manifest["attentions"] | ladder["attentions"],
        }


def _climbed(text: str, stop: Stop) -> tuple[Tensors, Manifest]:
    """The words of a text through every rung."""
    words, inputs = words_and_inputs(text)
    if not 1 <= len(words) <= WORDS:
        raise ValueError(f"the ladder takes 1 to {WORDS} words, not {len(words)}")
    tensors: Tensors = {"inputs": inputs}
    steps: list[list[Any]] = [["inputs", list(inputs.shape)]]
    attentions: Manifest = {}
    rungs = []
    for name, rung in LADDER.items():
        stop()
        _, ran, context = run_example(rung, text)
        prefix = f"ladder.{name}."
        found, facts = trace_file.described(ran)
        found["result"] = context
        tensors |= {prefix + step: tensor for step, tensor in found.items()}
        steps += [[prefix + step, list(tensor.shape)] for step, tensor in found.items()]
        for layer, options in facts["attentions"].items():
            attentions[f"{prefix}{layer}".rstrip(".")] = options
        parameters, spec, _ = rung.example()
        rungs.append(
            {key: getattr(rung, key) for key in ("name", "idea", "equation", "source")}
            | {"parameters": sorted(parameters), "dropout": spec.dropout}
        )
    shown = [trace_file.drawn(word.encode(errors="surrogatepass")) for word in words]
    tokens = [{"display": word} for word in shown]
    ladder = {"tokens": tokens, "text": " ".join(shown), "rungs": rungs}
    manifest = {"steps": steps, "attentions": attentions, "tokens": tokens, "ladder": ladder}
    return tensors, manifest | {"overview": trace_file.OVERVIEW}


def changes(tensors: Tensors) -> dict[str, list[float]]:
    """How much the attention and the MLP of each layer change the residual stream.

    The norm of what is added over the norm of what it is added to, the mean over the tokens.
    """
    names = [name for name in tensors if name == "embedded" or ".after_" in name]
    found: dict[str, list[float]] = {}
    for before, after in pairwise(names):
        old, new = tensors[before].astype(np.float64), tensors[after].astype(np.float64)
        share = np.linalg.norm(new - old, axis=-1) / np.maximum(np.linalg.norm(old, axis=-1), 1e-30)
        if np.isfinite(share).all():  # JSON knows no NaN
            found.setdefault(after.rpartition(".")[0], []).append(float(share.mean()))
    return found
