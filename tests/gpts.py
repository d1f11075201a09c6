"""Small GPTs that differ in everything that a config can say, for the tests of both engines."""

import zlib

import numpy as np

from headway.attention import dispatch
from headway.attention.masks import both
from headway.attention.options import spec_from
from headway.attention.spec import used
from headway.models.gpt import GPTConfig, config_from, shapes

# Short names of settings, for tests: where they are in a config.
_PLACES = {
    **{
        n: ("attention", n) for n in ("kv_heads", "d_k", "qk_norm", "causal", "scale", "normalizer")
    },
    "positions": ("positions", "kind"),
    "norm": ("norm", "kind"),
    "window": ("attention", "window"),
    "eps": ("norm", "eps"),
    "mlp": ("mlp", "kind"),
    "d_mlp": ("mlp", "width"),
}


def gpt_config(vocabulary, context, width, layers, heads, **choices):
    """A GPTConfig with its settings by short names."""
    settings = {"vocabulary": vocabulary, "context": context, "width": width, "layers": layers}
    settings["attention"] = {"heads": heads}
    for name, value in choices.items():
        table, key = _PLACES.get(name, (None, name))
        (settings if table is None else settings.setdefault(table, {}))[key] = value
    return config_from(GPTConfig, settings, "model")


GPT2 = {}
MODERN = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": True}

PRESETS = {
    "gpt2": GPT2,
    "modern": MODERN,
    "llama": {**MODERN, "tied": False, "kv_heads": 2, "qk_norm": False},
    "untied grouped gpt2": {"tied": False, "kv_heads": 1},
    "no positions": {"positions": "none"},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi"},
    "relative": {**MODERN, "positions": "relative", "mlp": "relu2", "kv_heads": 2},
    "wide heads": {**MODERN, "d_k": 10, "d_mlp": 7, "kv_heads": 2},
    "entmax": {"normalizer": "entmax15", "scale": 0.7},
}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9))


def config(**changes):
    sizes = {"vocabulary": 11, "context": 10, "width": 24, "layers": 2, "heads": 4}
    return gpt_config(**{**sizes, **changes})


def lively(config, attention=None):
    """Larger weights than the first ones, so that nothing hides in near-uniform attention."""
    return {
        name: np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        / (4 if len(shape) > 1 else 2)
        + (len(shape) == 1 and name.endswith("weight"))
        for name, shape in shapes(config, attention).items()
    }


def attending(kernel=None, **options):
    """A function for `attend=` of a model's attention: with other options and a named kernel."""
    extra = spec_from(options)
    changes = {name: getattr(extra, name) for name in used(extra) if name != "mask"}

    def attend(queries, keys, values, spec):
        mask = spec.mask if extra.mask is None else both(spec.mask, extra.mask)
        return dispatch.run(queries, keys, values, spec._replace(mask=mask, **changes), kernel)

    return attend
