"""The design's bound on a kernel's error, for the tests that hold kernels to it."""


def close_enough(result, plain, exact, eps):
    """Twice the plain mechanism's error, and a little for rounding."""
    for one, other, right in zip(result, plain, exact, strict=True):
        error, usual = abs(one - right).max(), abs(other - right).max()
        # In float64 the plain mechanism is what the others are held to, its own error unknown.
        least = 1e-12 if eps < 1e-15 else 4 * eps * abs(right).max()
        assert error <= 2 * usual + least
