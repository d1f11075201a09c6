"""Parameters that several commands share, with their help texts."""

from typing import Annotated, Literal

from cyclopts import Parameter

from headway import engines

RunName = Annotated[str, Parameter(help="Name of a run in the folder `runs`, or its path.")]
ModelName = Annotated[
    str,
    Parameter(
        help="Name of a run in the folder `runs`, path of a run or of a Hugging Face folder, or "
        "name of a model in the local Hugging Face cache."
    ),
]
Runs = Annotated[str, Parameter(help="Folder of the runs.")]
Engine = Annotated[engines.Name, Parameter(help="PyTorch or JAX.")]
Device = Annotated[
    Literal["cuda", "mps", "cpu"] | None,
    Parameter(help="By default the fastest device of this machine."),
]
DType = Annotated[
    engines.DType | None,
    Parameter(help="Number format of the model; by default that of its config.json."),
]
Switch = Annotated[bool, Parameter(negative=())]


def check_port(port: int) -> None:
    """Raise ValueError for a port that users may not open, before anything is written."""
    if not 1024 <= port < 2**16:
        raise ValueError(f"port must be from 1024 to {2**16 - 1} (got {port})")
