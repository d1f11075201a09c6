"""Headway: attention, from one dot product to a GPT that you trained.

Importing it loads neither PyTorch nor JAX, and a name only when it is used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.attention.dispatch import attend, explain, weights
    from headway.attention.masks import Mask
    from headway.attention.spec import Unsupported
    from headway.explore.notebook import show
    from headway.tracing import edit, tap, trace

__all__ = ["Mask", "Unsupported", "attend", "edit", "explain", "show", "tap", "trace", "weights"]

_HOMES = {
    "headway.explore.notebook": ("show",),
    "headway.attention.dispatch": ("attend", "explain", "weights"),
    "headway.attention.spec": ("Unsupported",),
    "headway.attention.masks": ("Mask",),
    "headway.tracing": ("edit", "tap", "trace"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
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
