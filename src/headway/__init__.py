"""Headway: attention, from one dot product to a trained GPT.

Importing this package loads neither PyTorch nor JAX. Each public name is imported on first use.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.attention.dispatch import attend, attention_weights, explain
    from headway.attention.masks import Mask, causal, documents, padding, window
    from headway.attention.spec import Spec, Unsupported
    from headway.check.doctor import diagnose
    from headway.divergence.compare import diff
    from headway.engines import train
    from headway.explore.notebook import show
    from headway.hf.stored import load
    from headway.hf.watch import watch
    from headway.ladder.rungs import LADDER
    from headway.models.gpt import preset
    from headway.tracing import edit, scope, tap, trace

_NAMES_BY_MODULE = {
    "headway.attention.dispatch": ("attend", "attention_weights", "explain"),
    "headway.attention.masks": ("Mask", "causal", "documents", "padding", "window"),
    "headway.attention.spec": ("Spec", "Unsupported"),
    "headway.check.doctor": ("diagnose",),
    "headway.divergence.compare": ("diff",),
    "headway.engines": ("train",),
    "headway.explore.notebook": ("show",),
    "headway.hf.stored": ("load",),
    "headway.hf.watch": ("watch",),
    "headway.ladder.rungs": ("LADDER",),
    "headway.models.gpt": ("preset",),
    "headway.tracing": ("edit", "scope", "tap", "trace"),
}

__all__ = [
    "LADDER",
    "Mask",
    "Spec",
    "Unsupported",
    "attend",
    "attention_weights",
    "causal",
    "diagnose",
    "diff",
    "documents",
    "edit",
    "explain",
    "load",
    "padding",
    "preset",
    "scope",
    "show",
    "tap",
    "trace",
    "train",
    "watch",
    "window",
]


def __getattr__(name: str) -> Any:
    for module, names in _NAMES_BY_MODULE.items():
        if name in names:
            value = getattr(import_module(module), name)
            globals()[name] = value  # the next access does not call this function
            return value
    raise AttributeError(f"module 'headway' has no attribute {name!r}")


def _display_in_notebook() -> None:
    """Make notebooks display a trace or a run as the explorer's page."""
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        html = shell.display_formatter.formatters["text/html"]
        for module, name in (("headway.tracing", "Trace"), ("headway.training.runs", "Run")):
            html.for_type_by_name(module, name, lambda x: __getattr__("show")(x)._repr_html_())


if "IPython" in sys.modules:
    _display_in_notebook()
