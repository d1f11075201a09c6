"""Files of tokens that other programs have written: .bin of nanoGPT and of llm.c."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headway import cache
from headway.data.files import File, hashed, sha256_of
from headway.data.shards import Shards
from headway.data.tokenizers import Tokenizer

# llm.c writes a header of 256 int32: such a number, a version, the number of tokens.
_HEADERS = {20240520: "<u2", 20240801: "<u4"}
_HEADER = 1024  # bytes
_AT_ONCE = 1 << 24  # tokens that are checked at once


class TokenFiles:
    """The .bin files of a folder: those with "train" in their name, and those with "val"."""

    def __init__(self, name: str, train: Sequence[Path], validation: Sequence[Path]) -> None:
        self.name = name
        self._train, self._validation = hashed(name, train), hashed(f"{name}/val", validation)
        self.sha256 = sha256_of([*self._train, *self._validation])

    def tokens(self, tokenizer: Tokenizer, context: int) -> tuple[Shards, Shards]:
        """Return the training data and the held-out data.

        Raises ValueError for a damaged file, a token that the tokenizer does not have, and fewer
        tokens than context + 1.
        """
        parts = []
        for kind, files in (("train", self._train), ("val", self._validation)):
            tokens = Shards([_checked(file, tokenizer.vocabulary) for file in files])
            if len(tokens) <= context:
                raise ValueError(
                    f"the .bin files for {kind} in {self.name} have {len(tokens):,} tokens, too "
                    f"few for a context of {context}: give more tokens or a smaller context"
                )
            parts.append(tokens)
        return parts[0], parts[1]


def token_files_in(name: str) -> TokenFiles | None:
    """Return the .bin files of a folder; None if it has not both kinds.

    Raises ValueError for a single .bin file.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".bin":
        raise ValueError(f"{name} is a file of tokens: give its folder, with train.bin and val.bin")
    files = sorted(path.glob("*.bin"))
    train, validation = ([file for file in files if kind in file.name] for kind in ("train", "val"))
    return TokenFiles(name, train, validation) if train and validation else None


def _checked(file: File, vocabulary: int) -> np.ndarray:
    """Return the tokens of a file; their maximum is kept in Headway's cache."""
    tokens = _mapped(Path(file.path))
    record = cache.writable("tokens", f"{file.sha256}.maximum")
    if not record.exists():
        starts = range(0, len(tokens), _AT_ONCE)
        largest = max((int(tokens[start : start + _AT_ONCE].max()) for start in starts), default=0)
        with cache.atomic(record) as temporary:
            temporary.write_text(str(largest), encoding="utf-8")
    largest = int(record.read_text(encoding="utf-8"))
    if largest >= vocabulary:
        raise ValueError(
            f"{file.path} has the token {largest:,}, but the tokenizer has {vocabulary:,} tokens "
            "only: give the --tokenizer that wrote the file"
        )
    return tokens


def _mapped(path: Path) -> np.ndarray:
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", count=3)
    kind = _HEADERS.get(int(header[0])) if len(header) == 3 else None
    start = 0 if kind is None else _HEADER
    width = np.dtype(kind or "<u2").itemsize
    count = (size - start) // width if kind is None else int(header[2])
    if size != start + count * width:
        raise ValueError(
            f"{path} is damaged: it has {size:,} bytes, expected {start + count * width:,}; "
            "write it again"
        )
    return np.memmap(path, kind or "<u2", "r", start, (count,)) if count else np.empty(0, "<u2")
