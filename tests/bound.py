"""The design's bound on a kernel's error, for the tests that hold kernels to it."""

import numpy as np
import torch

import headway


def arrays(case, dtype=torch.float64, device="cpu"):
    r = np.random.default_rng(3)
    made = [torch.tensor(r.normal(size=s), dtype=dtype, device=device) for s in case.shapes]
    return [x.requires_grad_() for x in made]


def outcome(leaves, **options):
    """The output and all gradients, in float64."""
    context = headway.attend(*leaves, **options)
    weight = torch.cos(torch.arange(context.numel(), dtype=torch.float64)).reshape(context.shape)
    loss = (context * weight.to(context)).sum()
    gradients = torch.autograd.grad(loss, leaves)
    return [each.detach().double() for each in (context, *gradients)]


def close_enough(found, plain, exact, eps):
    """Twice the plain mechanism's error, and a little for rounding."""
    for one, other, right in zip(found, plain, exact, strict=True):
        error, usual = abs(one - right).max(), abs(other - right).max()
        # In float64 the plain mechanism is what the others are held to, its own error unknown.
        least = 1e-12 if eps < 1e-15 else 4 * eps * abs(right).max()
        assert error <= 2 * usual + least
