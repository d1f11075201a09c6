"""Tokenize a corpus in a process that is killed or measured.

preparing.py FOLDER TOKENIZER [memory]

With `memory`, units have their usual size and this process does all the work; it prints its maximum
memory in bytes.
"""

import sys
from pathlib import Path

from headway.data import corpus, documents
from headway.data.files import hashed
from headway.data.tokenizers import Tokenizer

if __name__ == "__main__":
    folder, file, *measured = sys.argv[1:]
    tokenizer = Tokenizer.load(Path(file), special=False)
    corpus._cores = lambda: 1
    if not measured:
        corpus.SHARD, corpus.LARGEST, documents.LARGEST = 3000, 1000, 1000
    files = hashed(folder, documents.files_of(folder))
    print("starts", flush=True)
    corpus.Corpus(files).tokens(tokenizer, tokenizer.end, lambda more, total: None)
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
