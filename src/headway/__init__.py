"""Headway: attention, from one dot product to a GPT that you trained.

Importing it loads neither PyTorch nor JAX, and a name only when it is used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.attention.dispatch import attend, attention_weights, explain
    from headway.attention.masks import Mask, causal, documents, padding, window
    from headway.attention.spec import Spec, Unsupported
    from headway.check.doctor import diagnose
    from headway.engines import train
    from headway.explore.notebook import show
    from headway.ladder.rungs import LADDER
    from headway.models.gpt import preset
    from headway.tracing import edit, scope, tap, trace

_HOMES = {
    "headway.attention.dispatch": ("attend", "attention_weights", "explain"),
    "headway.attention.masks": ("Mask", "causal", "documents", "padding", "window"),
    "headway.attention.spec": ("Spec", "Unsupported"),
    "headway.check.doctor": ("diagnose",),
    "headway.engines": ("train",),
    "headway.explore.notebook": ("show",),
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
    "documents",
    "edit",
    "explain",
    "padding",
    "preset",
    "scope",
    "show",
    "tap",
    "trace",
    "train",
    "window",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value  # so that this function is called once for each name
            return value
    raise AttributeError(f"module 'headway' has no attribute {name!r}")


def _shown_inline() -> None:
    """In a notebook a trace or a run shows itself as the explorer's page."""
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        html = shell.display_formatter.formatters["text/html"]
        for home, name in (("headway.tracing", "Trace"), ("headway.training.runs", "Run")):
            html.for_type_by_name(home, name, lambda what: __getattr__("show")(what)._repr_html_())


if "IPython" in sys.modules:
    _shown_inline()
