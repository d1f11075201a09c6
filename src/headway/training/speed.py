"""How well training uses the device: the MFU, from the time of a step and the device's peak."""

import time
from collections.abc import Callable, Sequence
from statistics import median

from headway.models.gpt import GPTConfig

SIZE = {"cpu": 1024}  # rows of the matrices whose product gives the peak
LARGE = 8192  # on all other devices


def operations(config: GPTConfig, parameters: int, tokens: int) -> int:
    """Floating-point operations of a training step per token (Kaplan et al. 2020, section 2.1).

    6 for each parameter in a matrix product, forward and backward, and those of attention to all
    `tokens` of a window; half of them are masked, but by convention they count.
    """
    table = 0 if config.tied else config.vocabulary * config.width
    if config.positions.kind == "learned":
        table += config.context * config.width
    attention = 12 * config.layers * tokens * config.attention.heads * config.d_k
    return 6 * (parameters - table) + attention


def peak(product: Callable[[int], Callable[[], object]], device: str) -> float:
    """Floating-point operations per second of the fastest of several matrix products.

    product: a function of a size that returns a function, which multiplies two square matrices of
    this size and waits for the result.
    """
    size = SIZE.get(device, LARGE)
    multiply, seconds = product(size), []
    for _ in range(6):
        began = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def step_time(seconds: Sequence[float]) -> float | None:
    """The median time of a step, from the times at which steps ended; None for fewer than two.

    Over several steps at a time, because a device may report several steps at once.
    """
    apart = min(8, len(seconds) - 1)
    if apart < 1:
        return None
    pairs = zip(seconds, seconds[apart:], strict=False)
    return median(later - earlier for earlier, later in pairs) / apart
