"""The loss without all logits in memory is the library's, with the library's gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, linear

from headway.torch.loss import linear_cross_entropy


@given(
    rows=st.integers(1, 13),
    words=st.integers(1, 11),
    at_once=st.integers(1, 60),
    smoothing=st.sampled_from([0.0, 0.3]),
)
def test_loss_and_gradients_are_those_of_the_library(rows, words, at_once, smoothing):
    generator = torch.Generator().manual_seed(rows * words)
    features = torch.randn(rows, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(words, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(0, words, (rows,), generator=generator)
    options = {"smoothing": smoothing, "logits_at_once": at_once}
    loss = linear_cross_entropy(features, weight, targets, **options)
    expected = cross_entropy(linear(features, weight), targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    results = (torch.autograd.grad(3 * x, (features, weight)) for x in (loss, expected))
    for gradient, wanted in zip(*results, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        loss = linear_cross_entropy(features, weight, targets, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_the_error_is_that_of_rounded_logits():
    features, weight = (torch.randn(n, 16).bfloat16().requires_grad_() for n in (200, 50))
    targets = (features @ weight.mT).argmax(-1)  # probabilities near 1 must not cancel
    loss = linear_cross_entropy(features, weight, targets, logits_at_once=1000)
    assert loss.dtype == torch.float32
    expected = cross_entropy(linear(features, weight).float(), targets)
    torch.testing.assert_close(loss, expected)
    wide = [x.detach().double().requires_grad_() for x in (features, weight)]
    truth = torch.autograd.grad(cross_entropy(linear(*wide), targets), wide)
    ours = torch.autograd.grad(loss, (features, weight))
    library = torch.autograd.grad(expected, (features, weight))
    for gradient, other, true in zip(ours, library, truth, strict=True):
        errors = [(x.double() - true).norm() / true.norm() for x in (gradient, other)]
        assert errors[0] < 1.5 * errors[1] < 0.05


@pytest.mark.parametrize(("logit", "smoothing"), [(9.0, 0.0), (219 / 128, 0.3)])
def test_small_differences_are_not_rounded_away(logit, smoothing):
    """The gradient is p - target: a probability p that is rounded first would lose it."""
    features = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[logit], [0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(features, weight, torch.tensor([0]), smoothing=smoothing)
    ours = torch.autograd.grad(loss, (features, weight))
    p = torch.tensor([[logit], [0.0]], dtype=torch.float64).softmax(0)
    of_weight = p - torch.tensor([[1 - smoothing / 2], [smoothing / 2]], dtype=torch.float64)
    assert 1e-4 < of_weight.abs().max() < 4e-3
    for gradient, expected in zip(ours, (of_weight[:1] * logit, of_weight), strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=2**-7, atol=0)


def test_the_memory_is_that_of_a_part(monkeypatch):
    largest = []
    softmax = torch.Tensor.log_softmax
    monkeypatch.setattr(
        torch.Tensor, "log_softmax", lambda x, dim: largest.append(x.numel()) or softmax(x, dim)
    )
    features, weight = torch.randn(40, 4, requires_grad=True), torch.randn(7, 4)
    linear_cross_entropy(features, weight, torch.zeros(40).long(), logits_at_once=7 * 6)
    assert largest == [42] * 6 + [28]


def test_second_derivatives_are_refused():
    features, weight = (torch.randn(n, 4, requires_grad=True) for n in (3, 5))
    loss = linear_cross_entropy(features, weight, torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad(loss.square(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
