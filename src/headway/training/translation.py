"""Settings and data of models for pairs of sentences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from headway.data import pairs
from headway.data.pairs import Pair, Split, encoded, is_grammar, words
from headway.data.tokenizers import Tokenizer
from headway.models.seq2seq import Seq2SeqConfig

WORDS = "words.json"  # in a run: the words of the training data, in each language

# Default settings for two CPU cores: GRAMMAR for the pairs of the grammar, which has 150 words in
# each language, and FILE for the pairs of a file.
GRAMMAR: Mapping[str, Any] = MappingProxyType(
    {"width": 128, "context": 96, "vocabulary": 640, "steps": 2500, "batch": 2048}
    | {"learning_rate": 3e-3, "weight_decay": 0.0, "evaluate_every": 100, "save_every": 500}
)
FILE: Mapping[str, Any] = MappingProxyType(
    {"width": 256, "context": 64, "vocabulary": 4000, "dropout": 0.25, "steps": 3000, "batch": 3000}
    | {"learning_rate": 2e-3, "weight_decay": 0.01, "evaluate_every": 250, "save_every": 500}
    | {"label_smoothing": 0.1}
)
# The Transformer needs a longer warmup and a lower learning rate.
TRANSFORMER: Mapping[str, Any] = MappingProxyType({"layers": 2, "heads": 4, "warmup": 0.1})
OF_GRAMMAR: Mapping[str, Any] = MappingProxyType({"width": 96, "learning_rate": 2e-3})
OF_FILE: Mapping[str, Any] = MappingProxyType({"learning_rate": 1e-3})


def recipe_for(kind: str, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe for a kind of model: its default settings, overridden by the given ones.

    source: the name of the pairs. given: values of fields of `Seq2SeqConfig` and `TrainingConfig`.
    """
    chosen: dict[str, Any] = {"kind": kind, "evaluation_windows": 512}
    chosen |= {"precision": "float32", "compile": False}
    chosen |= GRAMMAR if is_grammar(source) else FILE
    if kind in ("transformer", "encoder"):
        chosen |= TRANSFORMER
        chosen |= OF_GRAMMAR if is_grammar(source) else OF_FILE
    chosen |= given
    of_model = {field.name for field in fields(Seq2SeqConfig)}
    return {
        "task": "masked-words" if kind == "encoder" else "translation",
        "text": source,
        "model": {k: v for k, v in chosen.items() if k in of_model},
        "training": {k: v for k, v in chosen.items() if k not in of_model},
    }


def held(given: Sequence[Pair], tokenizer: Tokenizer, context: int) -> tuple[Split, int]:
    """Split the pairs and remove those that are longer than the context.

    Returns the split and the number of removed pairs. Long pairs are removed from the training and
    validation data only; the test data keep them. Raises ValueError if too few pairs remain.
    """
    parts = pairs.split(given)
    train, validation = (
        [pair for pair in part if fits(pair.source, pair.target, tokenizer, context)]
        for part in (parts.train, parts.validation)
    )
    tested = any(fits(pair.source, pair.target, tokenizer, context) for pair in parts.test)
    if not (train and validation and tested):
        raise ValueError(
            f"too few of the {len(given):,} pairs remain for training, validation and test; give "
            f"more different pairs, or a --context larger than {context}"
        )
    longer = len(parts.train) + len(parts.validation) - len(train) - len(validation)
    return Split(train, validation, parts.test), longer


def encode(part: Sequence[Pair], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs as tokens; every sentence ends with END."""
    return [(encoded(pair.source, tokenizer), encoded(pair.target, tokenizer)) for pair in part]


def words_file(train: Sequence[Pair]) -> str:
    """The content of WORDS: the words of each language in lower case, sorted."""
    known = {
        side: sorted({word.lower() for pair in train for word in words(getattr(pair, side))})
        for side in Pair._fields
    }
    return json.dumps(known, ensure_ascii=False) + "\n"


def known_words(folder: Path) -> dict[str, list[str]]:
    """Read the words that a run was trained on, by "source" and "target"."""
    words_: dict[str, list[str]] = json.loads((folder / WORDS).read_text(encoding="utf-8"))
    return words_


def strange(sentence: str, known: Mapping[str, Sequence[str]]) -> str:
    """Return a warning about words that are not in the training data; "" if there are none.

    known: the words of the training data, as returned by `known_words`.
    """
    asked = dict.fromkeys(word.lower() for word in words(sentence) if word.isalpha())
    source, target = set(known["source"]), set(known["target"])
    new = [word for word in asked if word not in source]
    if len(new) * 2 > len(asked) and all(word in target for word in new):
        return "this looks like the language that the model writes, not like the one that it reads"
    if new:
        return f"not in the training data, and likely to be mistranslated: {', '.join(new)}"
    return ""


def fits(source: str, target: str, tokenizer: Tokenizer, context: int) -> bool:
    """Whether both sentences and their ends fit a context."""
    return max(len(tokenizer.encode(sentence)) for sentence in (source, target)) < context
