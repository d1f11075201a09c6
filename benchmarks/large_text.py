"""A large text: the tokenizer's own speed on all cores, next to preparing a corpus, and its memory.

    python -m benchmarks.large_text --output docs/bench/large_text.json
    python -m benchmarks.large_text --megabytes 100 --folder /tmp/large    # a smaller corpus

The corpus is made for the trial: documents of words that are drawn from the Python manual, in
.jsonl, .parquet, .jsonl.gz and .txt.zst. Memory is the sum over all processes, of the pages that
each uses (proportional set size), sampled ten times per second.
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
        texts = of_size(number, min(AT_ONCE, megabytes * 10**6 // 4))
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


def prepare(corpus: Path, tokenizer: Path) -> None:
    """Tokenize the corpus; a process of its own, whose memory is measured."""
    loaded = Tokenizer.load(tokenizer, special=False, end=Tokenizer.load(tokenizer).end)
    assert loaded.end is not None
    files = sorted(corpus.iterdir())
    stored = Corpus(hashed(str(corpus), files)).tokens(loaded, loaded.end, lambda more, total: None)
    print(sum(size for shard in stored.shards for size, *_ in shard["units"]))


def memory_of(process: int) -> int:
    """The memory of a process and of those that it started, in bytes."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    return 1024 * sizes["Pss:"] + sum(memory_of(int(child)) for child in children)


def measured(command: list[str], cache: str) -> tuple[float, int, int]:
    """Run a command; return the seconds, its maximum memory in bytes, and the number it prints."""
    peak, ended = 0, threading.Event()
    began = time.perf_counter()
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
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    return seconds, peak, int(output)


def main() -> None:
    parser = report.options(__doc__, rounds=1)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--folder", help="a corpus that exists, or where to write it")
    parser.add_argument("--own", help="print the own speed of this tokenizer.json")
    parser.add_argument("--prepare", nargs=2, help="prepare this folder with this tokenizer.json")
    options = parser.parse_args()
    if options.own:
        print(own_speed(Path(options.own)))
        return
    if options.prepare:
        prepare(*map(Path, options.prepare))
        return
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(options.folder or temporary) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        size = generate(corpus, options.megabytes)
        tokenizer = Path(temporary) / "tokenizer.json"
        sample = "".join(islice(documents(0), 2000))
        tokenizer_for(sample, "bpe", 16_384, end=True).save(tokenizer)
        cores = len(os.sched_getaffinity(0))
        before = speed_on(cores, tokenizer)
        command = [sys.executable, "-m", "benchmarks.large_text", "--prepare"]
        cache = f"{temporary}/cache"
        seconds, peak, tokens = measured([*command, str(corpus), str(tokenizer)], cache)
        again, memory, _ = measured([*command, str(corpus), str(tokenizer)], cache)
        own = (before + speed_on(cores, tokenizer)) / 2
    rows = [
        {
            "corpus, GB": f"{size / 1e9:.2f}",
            "tokens, million": f"{tokens / 1e6:,.0f}",
            "cores": cores,
            "the tokenizer alone, MB/s": f"{own / 1e6:.2f}",
            "preparing, MB/s": f"{size / seconds / 1e6:.2f}",
            "share": f"{size / seconds / own:.2f}",
            "memory, MB": f"{peak / 1e6:.0f}",
            "from the cache, s": f"{again:.2f}",
        }
    ]
    print(rows, f"memory from the cache {memory / 1e6:.0f} MB")
    report.save({"machine": machine(), "rows": rows}, options.output)


if __name__ == "__main__":
    main()
