"""The processes that `torchrun` starts, and how they exchange texts."""

import os
from typing import Any, final

import torch
from torch import distributed

from headway.torch import devices
from headway.training.processes import ALONE, PREPARATION, STEP, Processes, ProcessLost


@final
class Joined:
    """This process and the others of a run; implements `training.processes.Processes`."""

    def __init__(self) -> None:
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self.is_first_here = int(os.environ.get("LOCAL_RANK", 0)) == 0
        self._patient = distributed.new_group(backend="gloo", timeout=PREPARATION)
        self._group = distributed.new_group(backend="gloo", timeout=STEP)

    def exchange(self, text: str, *, patiently: bool = False) -> list[str]:
        """Return the texts that all processes give; see `training.processes.Processes`."""
        try:
            return self._exchanged(text, self._patient if patiently else self._group)
        except RuntimeError as error:
            raise ProcessLost(str(error).split("\n")[0]) from error

    def leave(self) -> None:
        """Leave the other processes, at the end of the training."""
        distributed.destroy_process_group()

    def _exchanged(self, text: str, group: Any) -> list[str]:
        sent = torch.tensor([*text.encode()], dtype=torch.uint8)
        sizes = [torch.zeros((), dtype=torch.int64) for _ in range(self.count)]
        distributed.all_gather(sizes, torch.tensor(len(sent)), group=group)
        most = max(int(size) for size in sizes)
        if not most:
            return [""] * self.count
        received = [torch.zeros(most, dtype=torch.uint8) for _ in sizes]
        padded = torch.nn.functional.pad(sent, (0, most - len(sent)))
        distributed.all_gather(received, padded, group=group)
        pairs = zip(received, sizes, strict=True)
        return [bytes(row[: int(size)].tolist()).decode() for row, size in pairs]


def join(device: str | None = None) -> Processes:
    """Join the processes that `torchrun` started; a process that was started alone is `ALONE`.

    device: as in `devices.choose`. Each process has a GPU of its own. Raises ValueError if there
    are too few, and if the processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
    chosen = devices.choose(device)
    backend = "gloo"
    if chosen.type == "cuda":
        backend, number = "cpu:gloo,cuda:nccl", int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise ValueError(
                f"every process needs a GPU, and this machine has {torch.cuda.device_count()}; "
                "start fewer processes, or use --device cpu"
            )
        torch.cuda.set_device(number)
    elif chosen.type == "mps":
        raise ValueError("several processes cannot train on mps; use --device cpu, or one process")
    try:
        distributed.init_process_group(backend, timeout=STEP)
        return Joined()
    except RuntimeError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the processes did not find each other at {address} ({reason}); check that the port "
            "is free and that all machines reach it"
        ) from error
