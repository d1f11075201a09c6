"""Measured numbers that are typed into a chapter stand in the document that it names."""

import re
from pathlib import Path

import pytest

from headway.learn.guide import CHAPTERS

DOCS = Path(__file__).parents[2] / "docs"
# The chapter, its words, the document, and what stands there (a regular expression).
TYPED = [
    (
        "01_bottleneck",
        "67 BLEU points, against 19 without",
        "lab/race/report.md",
        r"depth 3 \| rnn [^%]*% [^|]*\| 19\.2 (?s:.*)depth 3 \| bahdanau [^%]*% [^|]*\| 66\.7 ",
    ),
    (
        "01_bottleneck",
        "32.6 of 100 points of BLEU",
        "lab/race/report.md",
        r"depth 0 \| rnn [^%]*% [^|]*\| 32\.6 ",
    ),
    (
        "01_bottleneck",
        "these are 99.6 points",
        "lab/race/report.md",
        r"depth 0 \| bahdanau [^%]*% [^|]*\| 99\.6 ",
    ),
    (
        "01_bottleneck",
        "about 580,000 parameters",
        "lab/race/report.md",
        r"rnn 582,988 parameters.* bahdanau 579,568 parameters.* transformer 584,064 parameters",
    ),
    (
        "04_projections",
        "lower by 0.044 nats per token",
        "lab/longer/report.md",
        r"multihead compared with fixed: tendency: lower by 0\.044 nats per token in all 3 seeds",
    ),
    (
        "10_batches",
        "torch 2.13.0 and jax 0.10.2",
        "conventions.md",
        r"torch 2\.13\.0 and jax 0\.10\.2",
    ),
    (
        "10_batches",
        "in 103 families of `transformers` 5.23.0",
        "observatory.md",
        r"transformers 5\.23\.0(?s:.*)\| left padding \| not finite \| eager in float64 \| 103:",
    ),
    (
        "12_cache",
        "version 5.23.0, 194 families that run",
        "observatory.md",
        r"transformers 5\.23\.0.*, 194 of them run",
    ),
    (
        "13_online",
        "needs 129 MB beyond its inputs and the tiled one 15.1 MB",
        "bench/README.md",
        r"(?s)1,024 \| tiled \|[^\n]* 15\.1 \|.*1,024 \| plain \|[^\n]* 129 \|",
    ),
    (
        "13_online",
        "at 4,096 tokens 2,039 MB and 27.7 MB, and the tiled one is 4.31 times as fast",
        "bench/README.md",
        r"(?s)4,096 \| tiled \|[^\n]* 4\.31 \| 27\.7 \|.*4,096 \| plain \|[^\n]* 2,039 \|",
    ),
    (
        "14_gpt",
        "by 0.052, 0.045 and 0.035 nats per token",
        "lab/longer/report.md",
        r"all 3 seeds \(-0\.052, -0\.045, -0\.035\)",
    ),
    (
        "15_bugs",
        'five for "chunks with a cache give the outputs of the complete text"',
        "check.md",
        r"chunks with a cache give the outputs of the complete text \| 5 \|",
    ),
    (
        "15_bugs",
        'four for "queries do not depend on each other"',
        "check.md",
        r"queries do not depend on each other \| 4 \|",
    ),
    (
        "15_bugs",
        'two for "no token depends on a later one"',
        "check.md",
        r"no token depends on a later one \| 2 \|",
    ),
]


@pytest.mark.parametrize(("chapter", "words", "document", "there"), TYPED)
def test_a_typed_number_stands_in_the_document(chapter, words, document, there):
    text = (CHAPTERS / f"{chapter}.md").read_text(encoding="utf-8")
    assert words in text
    assert document in text or document.removesuffix("/report.md") in text
    assert re.search(there, (DOCS / document).read_text(encoding="utf-8"))
