"""What a model learns in PyTorch: the next token of a text, a translation, or masked words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from headway.attention.spec import Spec
from headway.data import batches
from headway.data.pairs import FIRST, MASK, PADDING, Batch, Bucketed, Split
from headway.data.tokenizers import Tokenizer
from headway.torch.gpt import GPT
from headway.torch.seq2seq import Seq2Seq
from headway.torch.train import Forward
from headway.training.settings import TrainingConfig
from headway.training.translation import encode

Encoded = Sequence[tuple[np.ndarray, np.ndarray]]  # pairs of sentences, their ends included

MASKED = 0.15  # of the words, as BERT has it: of these 80% are masked, 10% are another word


@final
class NextToken:
    """The token after each token of a window, of a text in one long row."""

    def __init__(
        self,
        model: GPT,
        tokens: Integer[np.ndarray, " tokens"],
        held_out: Integer[np.ndarray, " others"],
        config: TrainingConfig,
    ) -> None:
        self._text, self._config, self._device = tokens, config, _place(model)
        self._context = model.config.context
        exam = batches.evaluation(held_out, self._context, config.evaluation_windows)
        self._exam = self._placed(exam)

    def losses(self, forward: Forward, step: int) -> Iterator[Tensor]:
        """The parts of the mean loss of a step's batch."""
        seed = self._config.seed
        sizes = {"size": self._config.batch, "context": self._context}
        inputs, targets = self._placed(batches.batch(self._text, seed=seed, step=step, **sizes))
        # torch.compile takes a number as fixed; without it numbers are quicker.
        number = torch.tensor if self._config.compile else int
        for some in self._cut(inputs):
            spec = Spec(seed=(seed, number(step)), batch_offset=number(some.start))
            logits = forward(inputs[some], spec)
            loss = _loss(logits, targets[some], smoothing=self._config.label_smoothing)
            yield loss * (targets[some].numel() / targets.numel())

    def tokens(self, step: int) -> int:
        """How many tokens were learnt from when `step` steps are done."""
        return step * self._config.batch * self._context

    def exam(self, forward: Forward) -> float:
        """The mean loss over the held-out windows."""
        inputs, targets = self._exam
        total = torch.zeros((), dtype=torch.float64)
        for some in self._cut(inputs):
            total += _loss(forward(inputs[some]), targets[some]).double().cpu() * len(inputs[some])
        return total.item() / len(inputs)

    def _cut(self, rows: Tensor) -> Iterator[slice]:
        at_once = self._config.micro_batch or self._config.batch
        for first in range(0, len(rows), at_once):
            yield slice(first, first + at_once)

    def _placed(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(each).to(self._device) for each in windows]


@final
class Translation:
    """The target of each source, word by word, each given those before it."""

    def __init__(
        self, model: Seq2Seq, train: Encoded, validation: Encoded, config: TrainingConfig
    ) -> None:
        self._batches = Bucketed(train, config.batch)
        self._config, self._device = config, _place(model)
        self._exam = [*Bucketed(validation, config.batch).all()]

    def losses(self, forward: Forward, step: int) -> Iterator[Tensor]:
        """The mean over the targets of a step's batch, which is not cut."""
        seed = self._config.seed
        source, lengths, inputs, targets = placed(self._batches.batch(seed, step), self._device)
        logits = forward(source, lengths, inputs, Spec(seed=(seed, step)))
        smoothing = self._config.label_smoothing
        yield _loss(logits, targets, PADDING, smoothing)

    def tokens(self, step: int) -> int:
        """How many tokens, of both languages, were learnt from."""
        return self._batches.tokens(step)

    def exam(self, forward: Forward) -> float:
        """The mean loss over the tokens of the held-out targets."""

        def ask(batch: Batch) -> tuple[Tensor, Tensor]:
            source, lengths, inputs, targets = placed(batch, self._device)
            return forward(source, lengths, inputs), targets

        return _examined(map(ask, self._exam))


@final
class FillIn:
    """The words of a sentence that were masked (Devlin et al. 2019, section 3.1)."""

    def __init__(
        self, model: Seq2Seq, train: Encoded, validation: Encoded, config: TrainingConfig
    ) -> None:
        self._batches = Bucketed(train, config.batch)
        self._config, self._device = config, _place(model)
        self._vocabulary = model.config.vocabulary
        exam = Bucketed(validation, config.batch).all()
        self._exam = [masked(each, self._vocabulary, 0, number) for number, each in enumerate(exam)]

    def losses(self, forward: Forward, step: int) -> Iterator[Tensor]:
        """The mean over the masked words of a step's batch."""
        seed = self._config.seed
        batch = masked(self._batches.batch(seed, step), self._vocabulary, seed, step)
        source, lengths, _, targets = placed(batch, self._device)
        logits = forward(source, lengths, spec=Spec(seed=(seed, step)))
        yield _loss(logits, targets, PADDING, self._config.label_smoothing)

    def tokens(self, step: int) -> int:
        """How many tokens were read."""
        return self._batches.tokens(step)

    def exam(self, forward: Forward) -> float:
        """The mean loss over the masked words of what is held out."""

        def ask(batch: Batch) -> tuple[Tensor, Tensor]:
            source, lengths, _, targets = placed(batch, self._device)
            return forward(source, lengths), targets

        return _examined(map(ask, self._exam))


def of_pairs(
    model: Seq2Seq, some: Split, tokenizer: Tokenizer, config: TrainingConfig
) -> Translation | FillIn:
    """What this kind of model learns from pairs: to translate or, from the sources, to fill in."""
    apart = -(-len(some.validation) // config.evaluation_windows)
    exam = some.validation[::apart]  # files are often sorted
    train, validation = encode(some.train, tokenizer), encode(exam, tokenizer)
    if model.config.kind != "encoder":
        return Translation(model, train, validation, config)
    alone = ([(source, source[:0]) for source, _ in part] for part in (train, validation))
    return FillIn(model, next(alone), next(alone), config)


def masked(batch: Batch, vocabulary: int, seed: int, step: int) -> Batch:
    """The sources with words hidden, and as targets what stood there, PADDING elsewhere.

    A function of (seed, step); in every sentence there is one at least, and never its end.
    """
    purpose = 1  # other than the order of the pairs
    draws = np.random.SeedSequence([purpose, seed, step])
    generator = np.random.Generator(np.random.Philox(draws))
    source = batch.source.copy()
    drawn = np.where(source >= FIRST, generator.random(source.shape), np.inf)
    chosen = (drawn < MASKED) | ((drawn == drawn.min(axis=1, keepdims=True)) & (source >= FIRST))
    targets = np.where(chosen, source, PADDING)
    how = generator.random(source.shape)
    source[chosen & (how < 0.8)] = MASK
    other = chosen & (how >= 0.9)
    source[other] = generator.integers(FIRST, vocabulary, size=int(other.sum()))
    return Batch(source, batch.lengths, batch.inputs, targets)


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def placed(batch: Batch, device: torch.device) -> list[Tensor]:
    """A batch as tensors, where the model lies."""
    return [torch.from_numpy(each).to(device) for each in batch]


def _loss(
    logits: Float[Tensor, "rows tokens vocabulary"],
    targets: Int[Tensor, "rows tokens"],
    padding: int = -100,  # no token
    smoothing: float = 0.0,
) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).to(wide),
        targets.flatten(),
        ignore_index=padding,
        label_smoothing=smoothing,
    )


def _examined(answers: Iterator[tuple[Tensor, Tensor]]) -> float:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for logits, targets in answers:
        said = int((targets != PADDING).sum())
        total += _loss(logits, targets, PADDING).double().cpu() * said
        count += said
    return total.item() / count
