"""The optional dependencies, and the error when one is missing."""

from importlib.util import find_spec

# The extras of pyproject.toml, and the modules that must be importable if an extra is installed.
EXTRAS = {
    "data": ("pyarrow",),
    "explore": ("starlette", "uvicorn", "anyio"),
    "hf": ("transformers",),
    "jax": ("jax", "optax"),
    "lab": ("scipy", "matplotlib"),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "translate": ("sacrebleu",),
}


def require(extra: str, part: str) -> None:
    """Raise ValueError if a module of an extra is not installed.

    Call this function before slow work starts. part: the part of Headway that needs the extra,
    named in the error message.
    """
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise ValueError(f"{part} needs {module}: pip install 'headway[{extra}]'")
