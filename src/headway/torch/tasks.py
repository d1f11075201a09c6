"""What a model learns in PyTorch: the next token of a text, a translation, or masked words.

Each task gives the batches of a step and the loss of one; `training/task.py` reads the data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from headway.attention.spec import DEFAULT, Spec
from headway.data import batches
from headway.data.pairs import FIRST, MASK, PADDING, Batch, Bucketed
from headway.torch.gpt import GPT
from headway.torch.seq2seq import Seq2Seq
from headway.torch.train import Task
from headway.training.settings import TrainingConfig

Encoded = Sequence[tuple[np.ndarray, np.ndarray]]  # pairs of sentences, with their ends

MASKED = 0.15  # of the words, as in BERT: 80% of these become MASK, 10% another word
LOGITS = 2**26  # that are held at once in training, at most


@final
class NextToken:
    """The token after each token of a window; the text is one long row."""

    def __init__(
        self,
        model: GPT,
        train: Integer[np.ndarray, " tokens"],
        validation: Integer[np.ndarray, " others"],
        config: TrainingConfig,
        logits_at_once: int = LOGITS,
    ) -> None:
        self._text, self._config, self._device = train, config, _device(model)
        self._logits_at_once = logits_at_once
        self._context = model.config.context
        windows = batches.evaluation(validation, self._context, config.evaluation_windows)
        self._validation = self._placed(windows)

    def batches(self, step: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        """The micro-batches of a step, each with its share of the tokens."""
        seed = self._config.seed
        sizes = {"size": self._config.batch, "context": self._context}
        inputs, targets = self._placed(batches.batch(self._text, seed=seed, step=step, **sizes))
        # torch.compile takes a number as fixed; without it numbers are quicker.
        number = torch.tensor if self._config.compile else int
        for rows in self._micro_batches(inputs):
            spec = Spec(seed=(seed, number(step)), batch_offset=number(rows.start))
            yield (inputs[rows], targets[rows], spec), len(inputs[rows]) / len(inputs)

    def loss(
        self,
        model: GPT,
        inputs: Int[Tensor, "batch tokens"],
        targets: Int[Tensor, "batch tokens"],
        spec: Spec = DEFAULT,
    ) -> Tensor:
        """The mean loss. More logits than `logits_at_once` are computed for some tokens at a time,
        and again for the gradient (Chen et al. 2016)."""
        features = model.features(inputs, spec)
        smoothing = self._config.label_smoothing if model.training else 0.0

        def mean(features: Tensor, targets: Tensor) -> Tensor:
            return _loss(model.logits(features), targets, smoothing=smoothing)

        at_once = max(1, self._logits_at_once // model.config.vocabulary)
        if targets.numel() <= at_once:
            return mean(features, targets)
        rows = torch.split(features.flatten(0, 1), at_once)
        words = torch.split(targets.flatten(), at_once)
        parts = [
            checkpoint(mean, row, word, use_reentrant=False) * len(word)
            for row, word in zip(rows, words, strict=True)
        ]
        return torch.stack(parts).sum() / targets.numel()

    def tokens(self, step: int) -> int:
        """How many tokens the first `step` steps have."""
        return step * self._config.batch * self._context

    def evaluate(self, model: GPT) -> float:
        """The mean loss over the held-out windows."""
        inputs, targets = self._validation
        total = torch.zeros((), dtype=torch.float64)
        for rows in self._micro_batches(inputs):
            mean = self.loss(model, inputs[rows], targets[rows])
            total += mean.double().cpu() * len(inputs[rows])
        return total.item() / len(inputs)

    def _micro_batches(self, rows: Tensor) -> Iterator[slice]:
        at_once = self._config.micro_batch or self._config.batch
        for first in range(0, len(rows), at_once):
            yield slice(first, first + at_once)

    def _placed(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(window).to(self._device) for window in windows]


@final
class Translation:
    """Each word of a target, given the source and the words before it."""

    def __init__(
        self, model: Seq2Seq, train: Encoded, validation: Encoded, config: TrainingConfig
    ) -> None:
        self._batches = Bucketed(train, config.batch)
        self._config, self._device = config, _device(model)
        self._validation = [*Bucketed(validation, config.batch).all()]

    def batches(self, step: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        """The batch of a step, as one piece."""
        seed = self._config.seed
        tensors = placed(self._batches.batch(seed, step), self._device)
        yield (*tensors, Spec(seed=(seed, step))), 1.0

    def loss(
        self,
        model: Seq2Seq,
        source: Tensor,
        lengths: Tensor,
        inputs: Tensor,
        targets: Tensor,
        spec: Spec,
    ) -> Tensor:
        """The mean loss over the tokens of the targets."""
        logits = model(source, lengths, inputs, spec)
        return _loss(logits, targets, PADDING, self._config.label_smoothing)

    def tokens(self, step: int) -> int:
        """How many tokens, of both languages, the first `step` steps have."""
        return self._batches.tokens(step)

    def evaluate(self, model: Seq2Seq) -> float:
        """The mean loss over the tokens of the held-out targets."""
        tensors = (placed(batch, self._device) for batch in self._validation)
        return _mean_loss((model(*known), targets) for *known, targets in tensors)


@final
class MaskedWords:
    """The words of a source that were masked (Devlin et al. 2019, section 3.1)."""

    def __init__(
        self, model: Seq2Seq, train: Encoded, validation: Encoded, config: TrainingConfig
    ) -> None:
        self._batches = Bucketed(_sources(train), config.batch)
        self._config, self._device = config, _device(model)
        self._vocabulary = model.config.vocabulary
        held_out = Bucketed(_sources(validation), config.batch).all()
        self._validation = [
            masked(batch, self._vocabulary, 0, number) for number, batch in enumerate(held_out)
        ]

    def batches(self, step: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        """The batch of a step, as one piece."""
        seed = self._config.seed
        batch = masked(self._batches.batch(seed, step), self._vocabulary, seed, step)
        source, lengths, _, targets = placed(batch, self._device)
        yield (source, lengths, targets, Spec(seed=(seed, step))), 1.0

    def loss(
        self, model: Seq2Seq, source: Tensor, lengths: Tensor, targets: Tensor, spec: Spec
    ) -> Tensor:
        """The mean loss over the masked words."""
        logits = model(source, lengths, spec=spec)
        return _loss(logits, targets, PADDING, self._config.label_smoothing)

    def tokens(self, step: int) -> int:
        """How many tokens the first `step` steps have."""
        return self._batches.tokens(step)

    def evaluate(self, model: Seq2Seq) -> float:
        """The mean loss over the masked words of the held-out sources."""
        tensors = (placed(batch, self._device) for batch in self._validation)
        return _mean_loss((model(source, lengths), t) for source, lengths, _, t in tensors)


# By the names of `training.task.TASKS`.
TASKS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {"next-token": NextToken, "translation": Translation, "masked-words": MaskedWords}
)


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


def placed(batch: Batch, device: torch.device) -> list[Tensor]:
    """A batch as tensors on a device."""
    return [torch.from_numpy(array).to(device) for array in batch]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _sources(pairs: Encoded) -> Encoded:
    """Pairs without their targets."""
    return [(source, source[:0]) for source, _ in pairs]


def _loss(
    logits: Float[Tensor, "*rows vocabulary"],
    targets: Int[Tensor, "*rows"],
    padding: int = -100,  # no token
    smoothing: float = 0.0,
) -> Tensor:
    """The mean cross-entropy over the targets that are not padding, in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.reshape(-1, logits.shape[-1]).to(wide)
    return cross_entropy(rows, targets.flatten(), ignore_index=padding, label_smoothing=smoothing)


def _mean_loss(outputs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The mean loss over all targets of several batches, from their logits."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for logits, targets in outputs:
        words = int((targets != PADDING).sum())
        total += _loss(logits, targets, PADDING).double().cpu() * words
        count += words
    return total.item() / count
