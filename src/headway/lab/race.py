"""The race: the same sentences, budget and number of parameters, without attention, with it, and
with nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headway.data import pairs
from headway.lab import work
from headway.lab.experiments import Job
from headway.models.seq2seq import Seq2SeqConfig, shapes
from headway.training import recipes, translation

NAME = "race"
QUESTION = "What does attention buy a translator?"
KINDS = ("rnn", "bahdanau", "transformer")
SEEDS: Mapping[str, int] = MappingProxyType({"quick": 3, "full": 5})
STEPS: Mapping[str, int] = MappingProxyType({"quick": 2500, "full": 7500})
# The sentence that shows why: in German its verbs pile up at the end, in the opposite order.
SENTENCE = "The dog, who must have been able to see the cat running through the garden, sleeps."


@dataclass(frozen=True)
class Race:
    """source: of the pairs. size: quick or full. Raises ValueError for pairs that make no sense."""

    source: str
    size: str = "quick"

    @property
    def folder(self) -> str:
        """A name for the report."""
        stem = "-".join(Path(name).stem for name in self.source.split(pairs.AND))
        return f"{NAME}-{stem.replace(':', '-')}-{self.size}"

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Every run: all kinds with the first seed, then with the next."""
        found = []
        for seed in range(SEEDS[self.size]):
            for kind in KINDS:
                given = self.settings[kind] | {"seed": seed}
                settings = translation.recipe_for(kind, self.source, given)
                config = recipes.plan(settings).config.to_json()
                digest = hashlib.sha256(config.encode()).hexdigest()[:8]
                found.append(Job(kind, seed, settings, f"{kind}-{seed}-{digest}"))
        return tuple(found)

    @cached_property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Of each kind: the Transformer as `headway translate train` has it, the others as wide as
        it takes for as many parameters."""
        recipe = translation.recipe_for("transformer", self.source, {})
        model = recipes.plan(recipe).config.model
        wanted = _parameters(model)
        found: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            width = model.width
            if kind != "transformer":
                sizes = {"kind": kind, "vocabulary": model.vocabulary, "context": model.context}
                width = min(
                    range(2, 4 * model.width, 2),
                    key=lambda width: abs(
                        _parameters(Seq2SeqConfig(**sizes, width=width)) - wanted
                    ),
                )
            found[kind] = {"width": width, "steps": STEPS[self.size]}
        return found


def _parameters(config: Seq2SeqConfig) -> int:
    return sum(prod(shape) for shape in shapes(config).values())


def compete(job: Job, folder: str) -> None:
    """In a worker: train it to the end, then let it translate the test."""
    from headway.bench.machine import machine
    from headway.engines import engine_named
    from headway.lab import translation as lab
    from headway.torch.translate import alignment, translated

    if work.is_stopped():
        return
    place = work.place_of_worker()
    plan = recipes.plan(job.settings)
    source, config, tokenizer = plan.config.text, plan.config, plan.tokenizer
    path = Path(folder)
    session = work.to_the_end(path, plan, engine_named())
    if session is None:
        return
    model = session.trainer.model
    some, left_out = translation.held(plan.source, tokenizer, config.model.context)
    known = frozenset(pair.source for pair in some.train)
    asked = lab.questions(source, known, some.test)
    asked, longer = lab.fitting(asked, tokenizer, config.model.context)
    said, matrix = "", None
    asked_also = pairs.encoded(SENTENCE, tokenizer)
    if len(asked_also) <= config.model.context:  # it may be another language altogether
        (found,) = translated(model, tokenizer, [SENTENCE], beams=4)
        said = found.text
        if job.variant != "rnn" and found.whole:
            looked = alignment(model, asked_also, found.tokens)
            by_word = lab.by_word(looked, asked_also[:-1].tolist(), found.tokens, tokenizer)
            matrix = by_word._asdict() | {"weights": by_word.weights.round(3).tolist()}
    result = {
        "machine": machine(place.type),
        "parameters": sum(p.numel() for p in model.parameters()),
        "answers": [lab.as_dict(each) for each in lab.answers(model, tokenizer, asked, beams=4)],
        "longer": longer,
        "left_out": left_out,
        "sentence": said,
        "matrix": matrix,
        "differences": session.differences,
    }
    work.write(path / work.RESULT, result)
