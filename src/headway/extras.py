"""The optional dependencies, and the error when one is missing."""

from importlib.util import find_spec

# The modules that each extra of pyproject.toml installs for the parts of Headway that need them.
EXTRAS = {
    "explore": ("starlette", "uvicorn", "anyio"),
    "jax": ("jax", "optax"),
    "lab": ("scipy", "matplotlib"),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "translate": ("sacrebleu",),
}


def require(extra: str, part: str) -> None:
    """Raise ValueError when a module of an extra is not installed.

    Call it before anything slow begins. part: what needs the extra, for the message.
    """
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise ValueError(f"{part} needs {module}: pip install 'headway[{extra}]'")
