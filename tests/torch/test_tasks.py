"""What translators learn: the loss by hand, padding that counts for nothing, masked words."""

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from gpts import gpt_config
from headway.data import pairs
from headway.data.pairs import END, FIRST, MASK, PADDING
from headway.models.seq2seq import Seq2SeqConfig
from headway.torch.gpt import GPT
from headway.torch.seq2seq import Seq2Seq
from headway.torch.tasks import NextToken, Pairs, masked
from headway.torch.train import Trainer
from headway.training.loop import NotFinite
from headway.training.settings import TrainingConfig

VOCABULARY = 19
PAIRS = [
    (np.array([5, 6, 7, END]), np.array([8, END])),
    (np.array([9, END]), np.array([10, 11, 12, END])),
    (np.array([7, 8, END]), np.array([5, 6, END])),
]


def model(kind, **other):
    sizes = {"heads": 2} if kind in ("transformer", "encoder") else {}
    return Seq2Seq(Seq2SeqConfig(kind, VOCABULARY, context=9, width=8, **sizes, **other)).double()


def by_hand(made, some, smoothing=0.0):
    """Token by token, each sentence by itself."""
    losses = []
    for source, target in some:
        inputs = torch.tensor([[pairs.START, *target[:-1]]])
        logits = made(torch.from_numpy(source)[None], torch.tensor([len(source)]), inputs)
        for row, token in zip(log_softmax(logits[0], -1), target, strict=True):
            losses.append(-(1 - smoothing) * row[token] - smoothing * row.mean())
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["rnn", "bahdanau", "luong", "transformer"])
def test_the_loss_is_the_mean_over_all_tokens_of_the_targets(kind, smoothing):
    made = model(kind).eval()
    config = TrainingConfig(batch=1000, label_smoothing=smoothing)
    task = Pairs(made, PAIRS, PAIRS[:2], config)
    ((batch, share),) = task.batches(0)
    assert share == 1
    loss = task.loss(made, *batch)
    assert loss.item() == pytest.approx(by_hand(made, PAIRS, smoothing))
    assert task.evaluate(made).item() == pytest.approx(by_hand(made, PAIRS[:2]))  # never smoothed
    assert task.tokens(3) == 3 * sum(len(sentence) for pair in PAIRS for sentence in pair)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_text_does_not_depend_on_the_logits_held_at_once(smoothing):
    gpt = GPT(gpt_config(VOCABULARY, 6, 8, 1, 2)).double()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 200)
    config = TrainingConfig(batch=5, micro_batch=3, label_smoothing=smoothing)
    results = []
    for at_once in (10**6, 7 * VOCABULARY, 1):  # all, some and one token at a time
        task = NextToken(gpt, tokens, tokens, config, at_once)
        loss = sum(task.loss(gpt, *batch) * share for batch, share in task.batches(2))
        gradients = torch.autograd.grad(loss, [*gpt.parameters()])
        results.append((loss, task.evaluate(gpt).detach(), *gradients))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_masks_hide_a_share_of_the_words_and_are_a_function_of_seed_and_step():
    rows = np.random.default_rng(0).integers(FIRST, 1000, (50, 41))
    complete = pairs.batch(
        [(np.append(row[: 20 + n % 20], END), row[:0]) for n, row in enumerate(rows)]
    )
    result = masked(complete, 1000, 3, 7)
    again = masked(complete, 1000, 3, 7)
    np.testing.assert_array_equal(result.source, again.source)
    assert (result.source != masked(complete, 1000, 3, 8).source).any()
    chosen = result.targets != PADDING
    words = complete.source >= FIRST
    assert not (chosen & ~words).any()  # neither ends nor padding
    np.testing.assert_array_equal(result.targets[chosen], complete.source[chosen])
    np.testing.assert_array_equal(result.source[~chosen], complete.source[~chosen])
    assert chosen.any(axis=1).all()
    assert chosen.sum() / words.sum() == pytest.approx(0.15, abs=0.03)
    hidden = (result.source == MASK) & chosen
    kept = (result.source == complete.source) & chosen
    assert hidden.sum() / chosen.sum() == pytest.approx(0.8, abs=0.08)
    assert kept.sum() / chosen.sum() == pytest.approx(0.1, abs=0.06)


def test_what_is_filled_in_is_learnt_where_it_was_masked_alone():
    made = model("encoder").eval()
    some = [(source, source[:0]) for source, _ in PAIRS]
    task = Pairs(made, PAIRS, PAIRS, TrainingConfig(batch=1000))
    ((arguments, _),) = task.batches(4)
    loss = task.loss(made, *arguments)
    batch = masked(
        Pairs(made, some, some, TrainingConfig(batch=1000))._batches.batch(0, 4), VOCABULARY, 0, 4
    )
    source, lengths, _, targets = (torch.from_numpy(one) for one in batch)
    scores = log_softmax(made(source, lengths), -1)
    wanted = [-scores[i, j, t] for (i, j), t in np.ndenumerate(batch.targets) if t != PADDING]
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item())
    assert task.tokens(1) == sum(len(source) for source, _ in PAIRS)
    assert targets.shape == source.shape


def test_a_translator_overfits_a_few_pairs_and_where_it_breaks_is_named():
    made = model("luong").float()
    config = TrainingConfig(steps=150, batch=1000, learning_rate=0.02, weight_decay=0.0)
    trainer = Trainer(made, Pairs(made, PAIRS, PAIRS, config), config)
    losses = [trainer.advance().loss for _ in range(150)]
    assert losses[0] > 2
    assert losses[-1] < 0.1
    with torch.no_grad():
        made.encoder.rnn.weight_hh_l0[0] = torch.nan
    with pytest.raises(NotFinite, match="the first output that is not finite is that of"):
        trainer.advance()
