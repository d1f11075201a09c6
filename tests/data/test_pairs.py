"""Sentence pairs: invalid files, held-out parts, and batches as a function of (seed, step)."""

import numpy as np
import pytest

from headway.data import pairs
from headway.data.pairs import END, FIRST, PADDING, START, Bucketed, Pair
from headway.data.tokenizers import Tokenizer

GOOD = [(f"the {n} dogs see a cat .", f"die {n} Hunde sehen eine Katze .") for n in range(40)]


def table(path, rows, name="pairs.tsv"):
    (path / name).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return str(path / name)


def test_a_table_and_two_files_are_the_same(tmp_path):
    one = table(tmp_path, GOOD)
    more = table(tmp_path, [(*row, "CC-BY", "someone") for row in GOOD], "more.tsv")
    two = [table(tmp_path, [(row[n],) for row in GOOD], f"{n}.txt") for n in (0, 1)]
    assert pairs.read(one) == pairs.read(pairs.AND.join(two)) == pairs.read(more)
    assert pairs.read(one) == tuple(Pair(*row) for row in GOOD)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*GOOD[:2], ("no tab here",), *GOOD],
            "expected two sentences separated by a tab in line 3",
        ),
        ([*GOOD, ("the cat", ""), ("", "die Katze")], "empty sentence in lines 41, 42"),
        ([*GOOD, *[("x", " ")] * 9], "lines 41, 42, 43, 44, 45 and 4 more"),
        (GOOD[:7], r"must have at least 20 pairs \(got 7\)"),
        ([*GOOD[:9], GOOD[9][::-1], *GOOD[10:]], "seem to be swapped in line 10"),
    ],
    ids=["no tab", "empty", "many", "few", "swapped"],
)
def test_errors_of_tables_name_the_lines(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        pairs.read(table(tmp_path, rows))


def test_files_of_unequal_length_are_refused(tmp_path):
    one = table(tmp_path, [row[:1] for row in GOOD], "one.txt")
    other = table(tmp_path, [row[1:] for row in GOOD[:-2]], "other.txt")
    with pytest.raises(ValueError, match=r"got 40 in .*one.txt and 38 in .*other.txt"):
        pairs.read(pairs.AND.join([one, other]))


def test_strange_line_ends_are_parts_of_sentences(tmp_path):
    rows = [*GOOD, ("one\u2028two", "eins\x0bzwei")]
    assert pairs.read(table(tmp_path, rows)) == tuple(Pair(*row) for row in rows)
    text = "\ufeff" + "".join("\t".join(row) + "\r\n" for row in GOOD)
    (tmp_path / "windows.tsv").write_bytes(text.encode())
    assert pairs.read(str(tmp_path / "windows.tsv")) == tuple(Pair(*row) for row in GOOD)


@pytest.mark.parametrize("depth", ["", "x", "-1", "12"])
def test_an_invalid_depth(depth):
    with pytest.raises(ValueError, match="depth of the grammar must be from 0 to 9"):
        pairs.depth_of(f"grammar:{depth}")


def test_no_source_is_on_two_sides_and_the_order_of_lines_does_not_matter():
    rows = [Pair(f"source {n // 3}", f"target {n}") for n in range(3000)]
    parts = pairs.split(rows)
    sources = [{pair.source for pair in part} for part in parts]
    assert not sources[0] & sources[1] | sources[0] & sources[2] | sources[1] & sources[2]
    assert [*map(len, parts)] == pytest.approx([2700, 150, 150], abs=3)
    assert sorted(pair for part in parts for pair in part) == sorted(rows)
    reversed_rows = pairs.split(rows[::-1])
    assert [set(part) for part in reversed_rows] == [set(part) for part in parts]
    large = pairs.split([Pair(f"source {n}", "target") for n in range(50_000)])
    assert [*map(len, large)] == [45_000, 4000, 1000]


def encoded(lengths):
    """Pairs that can be told apart by their tokens."""
    return [
        (np.append(np.full(s - 1, FIRST + n), END), np.append(np.full(t - 1, FIRST + n), END))
        for n, (s, t) in enumerate(lengths)
    ]


LENGTHS = [(2 + n % 5, 2 + n % 7) for n in range(60)]


def test_an_epoch_has_each_pair_once_in_batches_that_are_full_enough():
    some = Bucketed(encoded(LENGTHS), most=40)
    for epoch in range(3):
        steps = range(epoch * len(some), (epoch + 1) * len(some))
        batches = [some.batch(5, step) for step in steps]
        rows = sorted(row[0] for item in batches for row in item.source.tolist())
        assert rows == [FIRST + n for n in range(60)]
        for item in batches:
            assert item.source.shape[0] * 2 * max(item.source.shape[1], item.targets.shape[1]) <= 40
    assert sum(item.size for item in batches) == some.tokens(len(some)) == sum(map(sum, LENGTHS))


def test_batches_follow_the_seed_and_nothing_else():
    one, other = (Bucketed(encoded(LENGTHS), most=40) for _ in range(2))
    other.batch(5, 3)  # what was asked before does not matter
    for step in (0, 7, 31):
        for left, right in zip(one.batch(5, step), other.batch(5, step), strict=True):
            np.testing.assert_array_equal(left, right)
    drawn = [[one.batch(seed, step).source.tolist() for step in range(5)] for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    epochs = [one.batch(1, step).source.tolist() for step in (0, len(one))]
    assert epochs[0] != epochs[1]


def test_a_pair_longer_than_a_batch_is_a_batch_by_itself():
    some = Bucketed(encoded([(30, 3), (2, 2), (3, 2)]), most=12)
    sizes = sorted(len(some.batch(0, step).source) for step in range(len(some)))
    assert sizes == [1, 2]


def test_a_batch_is_padded_and_shifted():
    result = pairs.batch([(np.array([7, 8, END]), np.array([9, END])), (np.array([5, END]),) * 2])
    assert result.source.tolist() == [[7, 8, END], [5, END, PADDING]]
    assert result.lengths.tolist() == [3, 2]
    assert result.targets.tolist() == [[9, END], [5, END]]
    assert result.inputs.tolist() == [[START, 9], [START, 5]]
    longer = pairs.batch(
        [(np.array([END]), np.array([9, END])), (np.array([END]), np.array([END]))]
    )
    assert longer.targets.tolist() == [[9, END], [END, PADDING]]


def test_encoding_goes_back():
    tokenizer = Tokenizer.byte_pairs("the dogs see a cat", 300)
    result = pairs.encoded("the cat", tokenizer)
    assert result[-1] == END
    assert tokenizer.decode(result[:-1] - FIRST) == "the cat"
    assert result[:-1].min() >= FIRST
