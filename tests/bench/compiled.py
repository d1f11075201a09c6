"""Run by test_compare.py in its own process: the shape checks would break compiled graphs."""

import sys
from dataclasses import replace

import torch

from headway.bench import compare
from headway.bench.compare import Bench
from headway.bench.settings import Setting

torch.set_num_threads(1)
compare.PATIENCE = 1e6  # the machine may be busy
SMALL = Setting(batch=2, tokens=24, heads=3, kv_heads=3, head_dim=8, compiled=True)

bench = Bench(seconds=0.01, peak=lambda dtype: 1e30, kernels=None)
setting = replace(SMALL, projections=sys.argv[1] == "with projections")
for row in bench.compare(setting).rows:
    assert row.verdict == "right", row
    if not row.name.endswith((", eager", "(JAX)")):
        assert row.ran.startswith("compiled: "), row
        assert row.compiling > 0.1 > row.median, row  # seconds
print("all compiled and right")
