"""What `attend` adds to PyTorch's scaled_dot_product_attention, on a few tokens.

    python -m benchmarks.overhead --output docs/bench/overhead.json

Times are of one call, the mean of 100 in a row; both sides run in turns, on one thread, without
gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks import report
from benchmarks.sides import in_turns, machine

import headway
from headway.bench.measure import Workload

AT_ONCE = 100
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "no mask, 4 tokens": (4, {}, {}),
    "causal, 4 tokens": (4, {"causal": True}, {"is_causal": True}),
    "causal, 64 tokens": (64, {"causal": True}, {"is_causal": True}),
}


def main() -> None:
    options = report.options(__doc__, rounds=200).parse_args()
    torch.set_num_threads(1)  # more would wait for each other for longer than a call takes
    rows = []
    for name, (tokens, ours, theirs) in CASES.items():
        x = torch.randn(1, 4, tokens, 32)
        sides: dict[str, Callable[[], float]] = {
            name: partial(Workload(partial(function, x, x, x, **arguments)).seconds, AT_ONCE)
            for name, function, arguments in (
                ("attend", headway.attend, ours),
                ("PyTorch", torch.nn.functional.scaled_dot_product_attention, theirs),
            )
        }
        with torch.no_grad():
            in_turns(sides, 3)
            spent = in_turns(sides, options.rounds)
        pairs = zip(spent["attend"], spent["PyTorch"], strict=True)
        added = [1e6 * (attend - pytorch) for attend, pytorch in pairs]
        rows.append(
            {
                "call": name,
                "kernel": headway.explain(x, x, x, **ours).chosen,
                **{f"{side}, µs": report.middle([1e6 * s for s in spent[side]]) for side in spent},
                "added, µs": report.middle(added),
                "added, quartiles, µs": report.quartiles(added),
            }
        )
    report.save({"machine": {**machine(), "threads": 1}, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
