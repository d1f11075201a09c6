"""The training tasks in PyTorch: the next token of a text, a translation, or masked words.

A task provides the batches of a step and their loss; `training/task.py` reads the data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headway.attention.masks import ended_by
from headway.attention.spec import DEFAULT, Spec
from headway.data import batches
from headway.data.batches import Tokens
from headway.data.pairs import FIRST, MASK, PADDING, Batch, Bucketed
from headway.torch.gpt import GPT
from headway.torch.loss import LOGITS, linear_cross_entropy
from headway.torch.seq2seq import Seq2Seq
from headway.torch.train import Task
from headway.training.processes import ALONE, Processes, micro_batches
from headway.training.settings import TrainingConfig

Encoded = Sequence[tuple[np.ndarray, np.ndarray]]  # pairs of sentences, with their ends

# Fraction of the words that are masked, as in BERT: 80% of them become MASK, 10% become a random
# word, 10% stay as they are.
MASKED = 0.15


@final
class NextToken:
    """Predict the token after each token of a window; the text is one array of tokens.

    separator: the token that ends a document, if documents are masked from each other.
    """

    def __init__(
        self,
        model: GPT,
        train: Tokens,
        validation: Tokens,
        config: TrainingConfig,
        logits_at_once: int = LOGITS,
        separator: int | None = None,
        *,
        device: torch.device | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """device: by default that of the model. processes: each takes a part of every batch."""
        if model.config.is_masked:
            raise ValueError("a model that predicts masked words cannot learn the next token")
        self._text, self._config, self._processes = train, config, processes
        self._device = _device(model) if device is None else device
        self._logits_at_once, self._separator = logits_at_once, separator
        self._context = config.length or model.config.context
        windows = batches.evaluation(validation, self._context, config.evaluation_windows)
        self._validation = self._placed(windows)

    def batches(self, step: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        """Yield this process's micro-batches of a step, each with its fraction of all tokens."""
        seed, size = self._config.seed, self._config.batch
        # torch.compile treats an int as a constant, and compiles again for another one.
        number = _placed(np.array(step), self._device) if self._config.compile else step
        for first, count, fraction in self._micro_batches(size):
            windows = batches.batch(
                self._text,
                seed=seed,
                step=step,
                size=size,
                context=self._context,
                rows=slice(first, first + count),
            )
            spec = Spec(seed=(seed, number), batch_offset=first)
            yield (*self._placed(windows), spec), fraction

    def loss(
        self,
        model: GPT,
        inputs: Int[Tensor, "batch tokens"],
        targets: Int[Tensor, "batch tokens"],
        spec: Spec = DEFAULT,
    ) -> Tensor:
        """Return the mean loss; see `linear_cross_entropy`."""
        if self._separator is not None:
            spec = ended_by(self._separator, inputs, spec)
        return linear_cross_entropy(
            model.features(inputs, spec).flatten(0, 1),
            model.head.weight,
            targets.flatten(),
            smoothing=self._config.label_smoothing if model.training else 0.0,
            logits_at_once=self._logits_at_once,
        )

    def tokens(self, step: int) -> int:
        """Return the number of tokens in the first `step` steps."""
        return step * self._config.batch * self._context

    def evaluate(self, model: GPT) -> Tensor:
        """This process's part of the mean loss over the held-out windows."""
        inputs, targets = self._validation
        parts = []
        for first, count, fraction in self._micro_batches(len(inputs)):
            rows = slice(first, first + count)
            parts.append(self.loss(model, inputs[rows], targets[rows]) * fraction)
        return torch.stack(parts).sum()

    def _micro_batches(self, rows: int) -> list[tuple[int, int, float]]:
        config, processes = self._config, self._processes
        at_once = config.micro_batch or -(-config.batch // processes.count)
        return micro_batches(rows, at_once, processes)

    def _placed(self, windows: Sequence[np.ndarray]) -> list[Tensor]:
        return [_placed(window, self._device) for window in windows]


@final
class Pairs:
    """Predict each word of a target from the source and the preceding words of the target.

    A model of the kind `encoder` predicts the masked words of the sources instead (Devlin et al.
    2019, section 3.1).
    """

    def __init__(
        self, model: Seq2Seq, train: Encoded, validation: Encoded, config: TrainingConfig
    ) -> None:
        self._masks = model.config.kind == "encoder"
        if self._masks:  # without targets
            train, validation = (
                [(source, source[:0]) for source, _ in part] for part in (train, validation)
            )
        self._batches = Bucketed(train, config.batch)
        self._config, self._device = config, _device(model)
        self._vocabulary = model.config.vocabulary
        held_out = Bucketed(validation, config.batch).all()
        self._validation = [self._masked(batch, 0, number) for number, batch in enumerate(held_out)]

    def batches(self, step: int) -> Iterator[tuple[tuple[Any, ...], float]]:
        """Yield the batch of a step, which is not split into micro-batches."""
        seed = self._config.seed
        batch = self._masked(self._batches.batch(seed, step), seed, step)
        yield (*self._arguments(batch), Spec(seed=(seed, step))), 1.0

    def loss(
        self,
        model: Seq2Seq,
        source: Tensor,
        lengths: Tensor,
        inputs: Tensor | None,
        targets: Tensor,
        spec: Spec,
    ) -> Tensor:
        """The mean loss over the tokens of the targets, or over the masked words."""
        logits = model(source, lengths, inputs, spec)
        return _loss(logits, targets, PADDING, self._config.label_smoothing)

    def tokens(self, step: int) -> int:
        """Return the number of tokens, of both languages, in the first `step` steps."""
        return self._batches.tokens(step)

    def evaluate(self, model: Seq2Seq) -> Tensor:
        """The mean loss over all held-out pairs."""
        sums, count = [], 0
        for batch in self._validation:
            *inputs, targets = self._arguments(batch)
            words = int((batch.targets != PADDING).sum())
            sums.append(_loss(model(*inputs), targets, PADDING) * words)
            count += words
        return torch.stack(sums).sum() / count

    def _masked(self, batch: Batch, seed: int, step: int) -> Batch:
        return masked(batch, self._vocabulary, seed, step) if self._masks else batch

    def _arguments(self, batch: Batch) -> tuple[Any, ...]:
        """Return the source, its lengths, the inputs of the decoder, if any, and the targets."""
        source, lengths, inputs, targets = placed(batch, self._device)
        return source, lengths, None if self._masks else inputs, targets


# The keys are those of `training.task.TASKS`.
TASKS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {"next-token": NextToken, "translation": Pairs, "masked-words": Pairs}
)


def masked(batch: Batch, vocabulary: int, seed: int, step: int) -> Batch:
    """Mask words of the sources; the targets are the original words there, PADDING elsewhere.

    A function of (seed, step). Every sentence has at least one masked word; END is never masked.
    """
    purpose = 1  # different random numbers from those for the order of the pairs
    draws = np.random.SeedSequence([purpose, seed, step])
    generator = np.random.Generator(np.random.Philox(draws))
    source = batch.source.copy()
    drawn = np.where(source >= FIRST, generator.random(source.shape), np.inf)
    chosen = (drawn < MASKED) | ((drawn == drawn.min(axis=1, keepdims=True)) & (source >= FIRST))
    targets = np.where(chosen, source, PADDING)
    action = generator.random(source.shape)
    source[chosen & (action < 0.8)] = MASK
    other = chosen & (action >= 0.9)
    source[other] = generator.integers(FIRST, vocabulary, size=int(other.sum()))
    return Batch(source, batch.lengths, batch.inputs, targets)


def placed(batch: Batch, device: torch.device) -> list[Tensor]:
    """A batch as tensors on a device; the lengths stay on the CPU, where the model reads them."""
    tensors = [_placed(array, device) for array in batch]
    tensors[batch._fields.index("lengths")] = torch.from_numpy(batch.lengths)
    return tensors


def _placed(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; the copy to a GPU does not wait for the steps before it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _loss(
    logits: Float[Tensor, "*rows vocabulary"],
    targets: Int[Tensor, "*rows"],
    padding: int = -100,  # not a token: by default no target is padding
    smoothing: float = 0.0,
) -> Tensor:
    """The mean cross-entropy over the targets that are not padding, in float32 or a wider dtype."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.reshape(-1, logits.shape[-1]).to(wide)
    return cross_entropy(rows, targets.flatten(), ignore_index=padding, label_smoothing=smoothing)
