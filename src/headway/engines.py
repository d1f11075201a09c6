"""The two engines by name, and training with one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from headway.extras import require

if TYPE_CHECKING:
    from headway.training.runs import Run
    from headway.training.session import Engine

Name = Literal["torch", "jax"]
DType = Literal["float32", "bfloat16", "float16", "float64"]


def engine_named(name: str = "torch") -> Engine:
    """Import and return an engine by name.

    Raises ValueError for an unknown name, and if the library is not installed.
    """
    if name not in get_args(Name):
        raise ValueError(f"engine must be torch or jax (got {name!r})")
    if name == "torch":
        # Imported here, because each of the two engines takes seconds to import.
        from headway.torch import engine as torch_engine

        return torch_engine
    require("jax", "the JAX engine")
    from headway.jax import engine as jax_engine

    return jax_engine


def train(
    text: str | None = None,
    *,
    recipe: str = "small",
    name: str | None = None,
    runs: str = "runs",
    engine: Name = "torch",
    device: str | None = None,
    **settings: Any,
) -> Run:
    """Train a model on a text and return the run.

    text: a file, a folder, or the name of a text (manual, shakespeare, verdict); by default the
        text of the recipe.
    name: the name of the run; by default the next free number.
    settings: settings that replace those of the recipe, with the names of the options of
        `headway train`, such as steps=300 or width=64.

    `headway.torch.weights.load(run)` returns the trained model. In a program that torchrun starts,
    all its processes train together. Raises ValueError for invalid
    settings, and `training.loop.NotFinite` if the loss becomes NaN or infinite.
    """
    from headway.training import recipes, session
    from headway.training.processes import first_here_then_others, on_first
    from headway.training.runs import new_path

    chosen = engine_named(engine)
    given = settings if text is None else {"text": text, **settings}
    resolved = recipes.override(recipes.read(recipe), given)
    processes = chosen.join(device)
    path = Path(on_first(processes, lambda: new_path(name, runs)))
    plan = first_here_then_others(processes, lambda: recipes.plan(resolved))
    training = session.begin(path, plan, chosen, device, processes=processes)
    training.fit()
    return training.run
