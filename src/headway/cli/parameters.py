"""Parameters that several commands share, with their help texts."""

from typing import Annotated, Literal

from cyclopts import Parameter

RunName = Annotated[str, Parameter(help="Name of a run in the folder `runs`, or its path.")]
Runs = Annotated[str, Parameter(help="Folder of the runs.")]
Engine = Annotated[Literal["torch", "jax"], Parameter(help="PyTorch or JAX.")]
Device = Annotated[
    Literal["cuda", "mps", "cpu"] | None,
    Parameter(help="By default the fastest device of this machine."),
]
Switch = Annotated[bool, Parameter(negative=())]
