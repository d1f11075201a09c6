"""Tokenize units of documents in several processes.

`python -m headway.data.encoding TOKENIZER END` is such a process: it reads a unit per line, as
JSON, and answers with a line of JSON and the tokens. Unlike `multiprocessing`, it works in programs
that have no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from headway.data.tokenizers import Tokenizer

HELD_OUT = (100, 50, 20, 10, 5, 2)  # one document in so many can be held out

# Each text, and whether its document ends there.
Unit = list[tuple[str, bool]]


class Encoded(NamedTuple):
    """The tokens of a unit, as bytes.

    documents: how many end in the unit. tokens: the number of tokens. held_out: how many of them,
    at the beginning, are held out, for each number in HELD_OUT.
    """

    documents: int
    tokens: int
    held_out: list[int]
    content: bytes


def dtype_of(tokenizer: Tokenizer) -> str:
    """Return the dtype of stored tokens, in little-endian order."""
    return "<u2" if tokenizer.vocabulary <= 2**16 else "<u4"


def encoded(unit: Unit, tokenizer: Tokenizer, end: int) -> Encoded:
    """Tokenize a unit, with the token `end` after every document.

    The documents are sorted by the SHA-256 of their text, so that those that are held out come
    first: one in 100 has a hash that is below a hundredth of its maximum.
    """
    hashed = sorted((hashlib.sha256(text.encode()).digest(), text, ends) for text, ends in unit)
    arrays, held_out, kind = [], [0] * len(HELD_OUT), dtype_of(tokenizer)
    for digest, text, ends in hashed:
        tokens = tokenizer.encode(text).astype(kind)
        arrays.append(np.append(tokens, np.array([end], kind)) if ends else tokens)
        part = int.from_bytes(digest[:8], "big") / 2**64
        held_out = [
            count + len(arrays[-1]) * (part < 1 / one_in)
            for count, one_in in zip(held_out, HELD_OUT, strict=True)
        ]
    content = np.concatenate(arrays)
    return Encoded(sum(ends for _, ends in unit), len(content), held_out, content.tobytes())


def encoded_units(
    units: Iterator[Unit], tokenizer: Tokenizer, file: Path, end: int, processes: int
) -> Generator[Encoded]:
    """Tokenize units in several processes, or in this one if `processes` is 1; keep their order.

    file: where the tokenizer is stored. Raises ValueError for a text that cannot be encoded, and
    ChildProcessError if a process is killed.
    """
    if processes == 1:
        yield from (encoded(unit, tokenizer, end) for unit in units)
        return
    workers = [_Worker(file, end) for _ in range(processes)]
    idle = queue.SimpleQueue[_Worker]()
    for worker in workers:
        idle.put(worker)

    def encode(request: bytes) -> Encoded:
        worker = idle.get()
        try:
            return worker.encoded(request)
        finally:
            idle.put(worker)

    pending: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(processes) as pool:
        try:
            for unit in units:
                pending.append(pool.submit(encode, json.dumps(unit).encode() + b"\n"))
                if len(pending) > processes + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            for worker in workers:
                worker.stop()


@final
class _Worker:
    """A process that tokenizes one unit at a time."""

    def __init__(self, tokenizer: Path, end: int) -> None:
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(tokenizer), str(end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C stops the parent, which then stops this process
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAYON_NUM_THREADS": "1"},
        )

    def encoded(self, request: bytes) -> Encoded:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise ChildProcessError(
                f"a process that tokenizes has ended with status {process.wait()}; if the memory "
                "was full, use fewer cores (taskset); the same command continues the work"
            ) from None
        if "error" in answer:
            raise ValueError(answer["error"])
        size = answer.pop("size")
        return Encoded(**answer, content=process.stdout.read(size))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _serve(file: str, end: str) -> None:
    """Answer requests until the standard input ends, also because the parent was killed."""
    tokenizer = Tokenizer.load(Path(file), special=False)
    for line in sys.stdin.buffer:
        try:
            *numbers, content = encoded(json.loads(line), tokenizer, int(end))
            answer = dict(zip(Encoded._fields, numbers, strict=False)) | {"size": len(content)}
        except ValueError as error:
            content, answer = b"", {"error": str(error)}
        try:
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + content)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the parent was killed
            os._exit(1)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
