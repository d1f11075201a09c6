"""Several processes: `--processes N` starts them with torchrun; one of them reports an error."""

import ctypes
import logging
import os
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM, Signals

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_REPORTED = "reported"  # an empty file, made by the process that reports an error


def is_first() -> bool:
    """Whether this process prints: the only one, or process 0 of several."""
    return int(os.environ.get("RANK", 0)) == 0


def is_one_of_several() -> bool:
    """Whether torchrun started this process, and others with it."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def end_with_parent() -> None:
    """Let this process be ended when the one that started it is, on Linux."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, SIGTERM)


def reports() -> bool:
    """Whether this process prints its error: of several on a machine, the first that asks."""
    if not is_one_of_several():
        return True
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return is_first()
    # torchrun makes a folder that has one folder for each of its processes.
    folder = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]
    try:
        (folder / _REPORTED).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def start(count: int) -> None:
    """Run this command in `count` processes on this machine, with torchrun, and exit.

    The exit status is that of the first process that failed; the others are stopped. Ctrl-C lets
    them finish their step.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if count < 1:
        raise ValueError(f"processes must be at least 1 (got {count})")
    if is_one_of_several():
        raise ValueError("torchrun has started several processes already; remove --processes")
    logging.disable(logging.ERROR)  # of torchrun, whose loggers have levels of their own
    # As torchrun does it, but all cores are used.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # JAX reads this; PyTorch's processes meet at the port that torchrun chooses.
    os.environ.setdefault("JAX_COORDINATOR_ADDRESS", f"127.0.0.1:{_free_port()}")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "50")  # seconds, for that step
    with tempfile.TemporaryDirectory(prefix="headway-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="headway",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "headway", *_without_count(sys.argv[1:]))
        except SignalException as error:
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            is_reported = any(Path(folder).rglob(_REPORTED))
            if failure.exitcode < 0 and not is_reported:
                name = Signals(-failure.exitcode).name
                raise ValueError(
                    f"process {rank} of {count} was ended by {name}, so the others were stopped; "
                    "the run continues from its last checkpoint with --resume"
                ) from None
            sys.exit(max(failure.exitcode, 1))
    sys.exit(0)


def _without_count(arguments: list[str]) -> list[str]:
    """The arguments without --processes and its value."""
    rest = []
    words = iter(arguments)
    for word in words:
        if word == "--processes":
            next(words)
        elif not word.startswith("--processes="):
            rest.append(word)
    return rest


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port
