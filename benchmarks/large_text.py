"""A large text: the tokenizer's own speed on all cores, next to preparing a corpus, and its memory.

    python -m benchmarks.large_text --output docs/bench/large_text.json
    python -m benchmarks.large_text --megabytes 100 --folder /tmp/large    # a smaller corpus

The corpus is made for the trial: documents of words of the Python manual, in files of 32 MB of
.jsonl, .parquet, .jsonl.gz and, as one long document, .txt.zst. Each round measures the library
`tokenizers` alone, in as many processes as there are cores, and then prepares four files, one of
each format. The last run prepares the whole corpus. Memory is that of the process with PyTorch, as
in `headway train`, and of all processes that it starts: the sum of their proportional set sizes,
read ten times per second.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
from benchmarks import report
from benchmarks.sides import machine
from pyarrow import parquet

from headway.data.corpora import manual
from headway.data.corpus import Corpus
from headway.data.files import hashed
from headway.data.tokenizers import Tokenizer, tokenizer_for

AT_ONCE = 32_000_000  # bytes of text in a file
SPEED = 20_000_000  # bytes of text on which the tokenizer's own speed is measured


def documents(seed: int) -> Iterator[str]:
    """Documents of 100 to 1,500 words of the manual, with a number that makes each unique."""
    words = np.array(manual().split(" "))
    generator = np.random.default_rng(seed)
    for number in range(10**9):
        start, size = generator.integers(len(words) - 1500), generator.integers(100, 1500)
        yield f"{seed}.{number} {' '.join(words[start : start + size])}\n"


def of_size(seed: int, size: int) -> list[str]:
    texts, total = [], 0
    for text in documents(seed):
        if total >= size:
            return texts
        texts.append(text)
        total += len(text.encode())
    return texts


def generate(folder: Path, megabytes: int) -> int:
    """Write a corpus, a quarter of it in each format; return its size in bytes of text."""
    total = 0
    for number in range(max(4, megabytes * 10**6 // AT_ONCE)):
        texts = of_size(number, AT_ONCE)
        total += sum(len(text.encode()) for text in texts)
        lines, path = (json.dumps({"text": text}) + "\n" for text in texts), folder / f"{number:04}"
        match number % 4:
            case 0:
                path.with_suffix(".jsonl").write_text("".join(lines))
            case 1:
                parquet.write_table(pyarrow.table({"text": texts}), path.with_suffix(".parquet"))
            case 2:
                with gzip.open(f"{path}.jsonl.gz", "wt", compresslevel=3) as out:
                    out.writelines(lines)
            case _:  # one long document
                with pyarrow.CompressedOutputStream(f"{path}.txt.zst", "zstd") as out:
                    out.write("".join(texts).encode())
    return total


def own_speed(tokenizer: Path) -> float:
    """The tokenizer's bytes per second on one core, of the library alone, in this process."""
    from tokenizers import Tokenizer as Library

    library, texts = Library.from_file(str(tokenizer)), of_size(1000, SPEED)
    began = time.perf_counter()
    for first in range(0, len(texts), 64):
        library.encode_batch_fast(texts[first : first + 64], add_special_tokens=False)
    return sum(len(text.encode()) for text in texts) / (time.perf_counter() - began)


def speed_on(cores: int, tokenizer: Path) -> float:
    """The sum of the tokenizer's own speed in as many processes as there are cores."""
    command = [sys.executable, "-m", "benchmarks.large_text", "--own", str(tokenizer)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(cores)
    ]
    return sum(float(process.communicate()[0]) for process in processes)


def prepare(corpus: Path, tokenizer: Path, count: int) -> None:
    """Tokenize the first files of a corpus; print the number of tokens and the seconds."""
    loaded = Tokenizer.load(tokenizer, special=False, end=Tokenizer.load(tokenizer).end)
    assert loaded.end is not None
    began = time.perf_counter()
    files = sorted(corpus.iterdir())[:count]
    stored = Corpus(hashed(str(corpus), files)).tokens(loaded, loaded.end, lambda more, total: None)
    tokens = sum(size for shard in stored.shards for size, *_ in shard["units"])
    print(tokens, time.perf_counter() - began)


def memory_of(process: int) -> int:
    """The memory of a process and of those that it started, in bytes."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    return 1024 * sizes["Pss:"] + sum(memory_of(int(child)) for child in children)


def prepared(corpus: Path, tokenizer: Path, count: int, cache: str) -> tuple[int, float, int]:
    """Call `prepare` in a process; return the tokens, the seconds and the maximum memory."""
    peak, ended = 0, threading.Event()
    command = [sys.executable, "-m", "benchmarks.large_text", "--prepare", str(corpus)]
    command += [str(tokenizer), str(count)]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            try:
                peak = max(peak, memory_of(process.pid))
            except OSError:  # a process has just ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    tokens, seconds = output.split()
    return int(tokens), float(seconds), peak


def main() -> None:
    parser = report.options(__doc__, rounds=3)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--folder", help="a corpus that exists, or where to write it")
    parser.add_argument("--own", help="print the own speed of this tokenizer.json")
    parser.add_argument("--prepare", nargs=3, help="a folder, a tokenizer.json, a number of files")
    options = parser.parse_args()
    if options.own:
        print(own_speed(Path(options.own)))
        return
    if options.prepare:
        corpus, tokenizer, count = options.prepare
        prepare(Path(corpus), Path(tokenizer), int(count))
        return
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(options.folder or temporary) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        size = generate(corpus, options.megabytes)
        tokenizer = Path(temporary) / "tokenizer.json"
        sample = "".join(islice(documents(0), 2000))
        tokenizer_for(sample, "bpe", 16_384, end=True).save(tokenizer)
        cores = len(os.sched_getaffinity(0))
        part = sum(sum(len(text.encode()) for text in of_size(n, AT_ONCE)) for n in range(4))
        own, speeds = [], []
        for number in range(options.rounds):
            own.append(speed_on(cores, tokenizer))
            _, seconds, _ = prepared(corpus, tokenizer, 4, f"{temporary}/{number}")
            speeds.append(part / seconds)
        tokens, seconds, memory = prepared(corpus, tokenizer, 10**9, f"{temporary}/cache")
        _, again, _ = prepared(corpus, tokenizer, 10**9, f"{temporary}/cache")
    row = {
        "text, GB": report.digits(size / 1e9),
        "tokens, million": round(tokens / 1e6),
        "cores": cores,
        "tokenizer alone, MB/s": report.middle([speed / 1e6 for speed in own]),
        "preparing, MB/s": report.middle([speed / 1e6 for speed in speeds]),
        "ratio": report.ratio(speeds, own),
        "whole corpus, s": round(seconds),
        "memory, MB": round(memory / 1e6),
        "from the cache, s": report.digits(again),
    }
    report.save({"machine": machine(), "rows": [row]}, options.output)


if __name__ == "__main__":
    main()
