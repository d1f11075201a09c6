"""Small GPTs that differ in everything that a config can say, for the tests of both engines."""

import zlib

import numpy as np

from headway.models.gpt import GPT2, MODERN, GPTConfig, shapes

PRESETS = {
    "gpt2": GPT2,
    "modern": MODERN,
    "llama": {**MODERN, "mlp": "swiglu", "tied": False, "kv_heads": 2, "qk_norm": False},
    "untied grouped gpt2": {"tied": False, "kv_heads": 1},
    "no positions": {"positions": "none"},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi"},
    "relative": {**MODERN, "positions": "relative", "kv_heads": 2},
    "wide heads": {**MODERN, "d_k": 10, "d_mlp": 7, "kv_heads": 2},
    "entmax": {"normalizer": "entmax15", "scale": 0.7},
}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9))


def config(**changes):
    sizes = {"vocabulary": 11, "context": 10, "width": 24, "layers": 2, "heads": 4}
    return GPTConfig(**{**sizes, **changes})


def lively(config, attention=None):
    """Larger weights than the first ones, so that nothing hides in near-uniform attention."""
    return {
        name: np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        / (4 if len(shape) > 1 else 2)
        + (len(shape) == 1 and name.endswith("weight"))
        for name, shape in shapes(config, attention).items()
    }
