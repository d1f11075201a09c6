"""The processes that `torchrun` starts, which meet through `jax.distributed`."""

import os
import sys
from datetime import timedelta
from threading import Thread
from typing import Any, final

import jax
from jax._src import distributed  # its store of texts has no public name; Orbax uses it as well
from jax.experimental import multihost_utils

from headway.training.processes import ALONE, PREPARATION, STEP, Processes, ProcessLost

# How long the processes wait for each other at the start, and for a sign of life.
MEETING = timedelta(minutes=2)
HEARTBEAT = timedelta(seconds=30)


@final
class Joined:
    """This process and the others of a run; implements `training.processes.Processes`.

    The texts are exchanged through the service that process 0 runs, not through the devices, which
    may be several steps behind.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.is_first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
        self._exchanges = 0

    def exchange(self, text: str, *, patiently: bool = False) -> list[str]:
        """Return the texts that all processes give; see `training.processes.Processes`."""
        limit = (PREPARATION if patiently else STEP) // timedelta(milliseconds=1)
        store: Any = distributed.global_state.client
        number = self._exchanges
        self._exchanges += 1
        try:
            store.key_value_set(f"headway/{number}/{self.rank}", text)
            texts = [
                store.blocking_key_value_get(f"headway/{number}/{rank}", limit)
                for rank in range(self.count)
            ]
            if number:  # all processes have read the texts of the exchange before this one
                store.key_value_delete(f"headway/{number - 1}/{self.rank}")
        except RuntimeError as error:
            raise ProcessLost(str(error).split("\n")[0]) from error
        return texts

    def leave(self) -> None:
        """Leave the other processes, at the end of the training."""
        jax.distributed.shutdown()


def join(device: str | None = None) -> Processes:
    """Join the processes that `torchrun` started; a process that was started alone is `ALONE`.

    Each process has a GPU of its own. Raises ValueError if there are too few, and if the processes
    do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
    _show_python_only()
    address = _address()
    errors: list[RuntimeError] = []

    def meet() -> None:
        try:
            _meet(address, device)
        except RuntimeError as error:
            errors.append(error)

    # In a thread, because XLA ends a process that waits for the others for too long.
    thread = Thread(target=meet, daemon=True)
    thread.start()
    thread.join(MEETING.total_seconds())
    if thread.is_alive():
        errors.append(RuntimeError(f"not within {MEETING.total_seconds():.0f} seconds"))
    if errors:
        reason = str(errors[0]).strip().split("\n")[0]
        raise ValueError(
            f"the processes did not find each other at {address} ({reason}); check that the port "
            "is free and that all machines reach it, or set JAX_COORDINATOR_ADDRESS to another one"
        ) from errors[0]
    return Joined()


def _meet(address: str, device: str | None) -> None:
    """Wait for the other processes and connect to them."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would ignore SIGTERM
    if device == "cpu":
        jax.config.update("jax_platforms", device)  # the processes meet on all devices of JAX
    count, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    jax.distributed.initialize(
        address,
        count,
        rank,
        local_device_ids=[int(os.environ.get("LOCAL_RANK", 0))],
        initialization_timeout=2 * int(MEETING.total_seconds()),
        heartbeat_timeout_seconds=int(HEARTBEAT.total_seconds()),
        shutdown_timeout_seconds=int(HEARTBEAT.total_seconds()),
        # Other machines do not need to reach it.
        coordinator_bind_address=address if address.startswith("127.") else None,
    )
    # Gloo gives the processes 30 seconds to connect, in their first sum.
    multihost_utils.sync_global_devices("headway")


def _address() -> str:
    """The address at which process 0 answers: by default, torchrun's with the next port."""
    usual = f"{os.environ.get('MASTER_ADDR')}:{int(os.environ.get('MASTER_PORT', 29500)) + 1}"
    return os.environ.get("JAX_COORDINATOR_ADDRESS", usual)


def _show_python_only() -> None:
    """Hide what C++ code prints: Gloo's connections, and XLA's many lines when a process ends.

    With TF_CPP_MIN_LOG_LEVEL=0, the setting of XLA's messages, all of it is shown; JAX sets 1.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream.fileno() == number:
            stream.flush()
            copy = os.fdopen(os.dup(number), "w", 1, encoding=stream.encoding, errors=stream.errors)
            setattr(sys, name, copy)
        os.dup2(nowhere, number)
