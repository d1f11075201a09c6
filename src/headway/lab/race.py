"""The race: an RNN without attention, an RNN with attention and a Transformer translate.

All have the same sentences, number of steps and number of parameters.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from headway.data import pairs
from headway.lab import work
from headway.lab.experiments import SEEDS, Job, Variant, jobs_of
from headway.models.seq2seq import Seq2SeqConfig, shapes
from headway.training import recipes, translation

NAME = "race"
QUESTION = "What does attention buy a translator?"
KINDS = ("rnn", "bahdanau", "transformer")
STEPS = {"quick": 2500, "full": 7500}
# In German, the verbs of this sentence follow each other at the end, in the opposite order.
SENTENCE = "The dog, who must have been able to see the cat running through the garden, sleeps."


@dataclass(frozen=True)
class Race:
    """A race. source: of the pairs. size: quick or full. Raises ValueError for invalid pairs."""

    source: str
    size: str = "quick"

    @property
    def folder(self) -> str:
        """The folder of the report."""
        stem = "-".join(Path(name).stem for name in self.source.split(pairs.AND))
        return f"{NAME}-{stem.replace(':', '-')}-{self.size}"

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All runs: all kinds with the first seed, then with the next."""
        configs = []
        for kind in KINDS:
            settings = translation.recipe_for(kind, self.source, self.settings[kind])
            configs.append((Variant(kind, settings), recipes.plan(settings).config))
        return jobs_of(configs, SEEDS[self.size])

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings by kind: the Transformer has the defaults of `headway translate train`; the
        widths of the others are chosen so that all have the same number of parameters."""
        recipe = translation.recipe_for("transformer", self.source, {})
        model = recipes.plan(recipe).config.seq2seq
        target = _parameters(model)
        settings: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            width = model.width
            if kind != "transformer":
                sizes: dict[str, Any] = {
                    "kind": kind,
                    "vocabulary": model.vocabulary,
                    "context": model.context,
                }
                width = min(
                    range(2, 4 * model.width, 2),
                    key=lambda width: abs(
                        _parameters(Seq2SeqConfig(**sizes, width=width)) - target
                    ),
                )
            settings[kind] = {"width": width, "steps": STEPS[self.size]}
        return settings


def _parameters(config: Seq2SeqConfig) -> int:
    return sum(prod(shape) for shape in shapes(config).values())


def compete(job: Job, folder: str) -> None:
    """Train a run in a worker, then translate the test sentences."""
    from headway.bench.machine import machine
    from headway.engines import engine_named
    from headway.lab import translation as lab
    from headway.torch.translate import alignment, translated

    if work.is_stopped():
        return
    device = work.worker_device()
    plan = recipes.plan(job.settings)
    config, tokenizer = plan.config, plan.tokenizer
    path = Path(folder)
    session = work.to_the_end(path, plan, engine_named())
    if session is None:
        return
    model = session.trainer.model
    split, left_out = translation.held(plan.source, tokenizer, config.model.context)
    known = frozenset(pair.source for pair in split.train)
    questions = lab.questions(config.text, known, split.test)
    questions, longer = lab.fitting(questions, tokenizer, config.model.context)
    text, matrix = "", None
    sentence = pairs.encoded(SENTENCE, tokenizer)
    if len(sentence) <= config.model.context:  # it may be in a language that the model cannot read
        (output,) = translated(model, tokenizer, [SENTENCE], beams=4)
        text = output.text
        if job.variant != "rnn" and output.complete:
            weights = alignment(model, sentence, output.tokens)
            by_word = lab.by_word(weights, sentence[:-1].tolist(), output.tokens, tokenizer)
            matrix = by_word._asdict() | {"weights": by_word.weights.round(3).tolist()}
    result = {
        "machine": machine(device.type),
        "parameters": session.trainer.parameters,
        "seconds": session.run.logged()[-1]["seconds"],
        "answers": [*map(lab.as_dict, lab.answers(model, tokenizer, questions, beams=4))],
        "longer": longer,
        "left_out": left_out,
        "sentence": text,
        "matrix": matrix,
        "differences": session.differences,
    }
    work.write(path / work.RESULT, result)
