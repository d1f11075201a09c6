"""Models that translate: their table, padding, caches, what they look at, and how they search."""

import numpy as np
import pytest
import torch

import headway
from headway.attention.scores import additive
from headway.attention.spec import Spec
from headway.data.pairs import END, FIRST, MASK, PADDING, START, batch
from headway.models.seq2seq import KINDS, Seq2SeqConfig, initial, shapes
from headway.torch.seq2seq import Memory, Seq2Seq
from headway.torch.translate import alignment, read, translate

WRITING = [kind for kind in KINDS if kind != "encoder"]
CELLS = [(kind, "gru") for kind in WRITING] + [(kind, "lstm") for kind in WRITING[:3]]
ATTENDING = [kind for kind in WRITING if kind != "rnn"]
VOCABULARY = 23


def config(kind, **other):
    sizes = {"layers": 3, "heads": 2} if kind in ("transformer", "encoder") else {}
    return Seq2SeqConfig(kind, VOCABULARY, **{"context": 12, "width": 8, **sizes, **other})


def model(kind, **other):
    """In float64, so that nothing but a mistake is larger than 1e-12; of some size everywhere."""
    made = Seq2Seq(config(kind, **other), seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def sentences(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [np.append(generator.integers(FIRST, VOCABULARY, n - 1), END) for n in lengths]


SOURCES, TARGETS = sentences([7, 3, 5, 2]), sentences([4, 6, 2, 5], seed=1)
PAIRS = batch(list(zip(SOURCES, TARGETS, strict=True)))
SOURCE, SIZES, INPUTS, _ = (torch.from_numpy(array) for array in PAIRS)


@pytest.mark.parametrize(
    ("kind", "choices"),
    [(kind, {"cell": cell}) for kind, cell in CELLS]
    + [("luong", {"score": "dot"}), ("luong", {"score": "dot", "cell": "lstm"}), ("encoder", {})],
    ids=str,
)
def test_the_table_is_that_of_the_model(kind, choices):
    result = config(kind, **choices)
    made = Seq2Seq(result)
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == shapes(result)


@pytest.mark.parametrize("kind", KINDS)
def test_first_values_follow_the_seed_and_the_name(kind):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = (Seq2Seq(config(kind), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in one.named_parameters():
        assert torch.equal(value, dict(same.named_parameters())[name])
        expected = initial(name, tuple(value.shape), 3)
        np.testing.assert_array_equal(value.detach(), expected)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_recurrent_matrices_are_orthogonal_gate_by_gate():
    for cell, gates in (("gru", 3), ("lstm", 4)):
        result = Seq2Seq(config("bahdanau", cell=cell)).decoder.rnn.weight_hh
        for gate in result.reshape(gates, 8, 8):
            assert torch.allclose(gate @ gate.mT, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize(("kind", "cell"), CELLS)
def test_padding_of_sources_and_targets_changes_nothing(kind, cell):
    made = model(kind, cell=cell)
    complete = made(SOURCE, SIZES, INPUTS)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone, sizes, inputs, _ = (torch.from_numpy(e) for e in batch([(source, target)]))
        torch.testing.assert_close(
            made(alone, sizes, inputs)[0], complete[row, : len(target)], atol=1e-12, rtol=0
        )
    other = torch.where(SOURCE == PADDING, MASK, SOURCE)
    torch.testing.assert_close(made(other, SIZES, INPUTS), complete, atol=0, rtol=0)


def test_padding_changes_nothing_of_what_is_filled_in():
    made = model("encoder")
    complete = made(SOURCE, SIZES)
    for row, source in enumerate(SOURCES):
        alone = made(torch.from_numpy(source)[None], torch.tensor([len(source)]))
        torch.testing.assert_close(alone[0], complete[row, : len(source)], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", WRITING)
def test_no_word_is_seen_before_it_is_said(kind):
    made = model(kind)
    complete = made(SOURCE, SIZES, INPUTS)
    for place in range(1, INPUTS.shape[1]):
        changed = INPUTS.clone()
        changed[:, place:] = (changed[:, place:] + 7) % VOCABULARY
        result = made(SOURCE, SIZES, changed)
        assert torch.equal(result[:, :place], complete[:, :place])
        assert not torch.allclose(result[:, place], complete[:, place])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_and_the_last_word_of_the_source_matter(kind):
    made = model(kind)
    inputs = None if kind == "encoder" else INPUTS
    complete = made(SOURCE, SIZES, inputs)
    for place in (0, SIZES[0] - 1):
        changed = SOURCE.clone()
        changed[0, place] = (changed[0, place] + 5) % VOCABULARY
        result = made(changed, SIZES, inputs)
        assert not torch.allclose(result[0], complete[0])
        assert torch.equal(result[1:], complete[1:])


@pytest.mark.parametrize(("kind", "cell"), CELLS)
def test_word_by_word_is_as_all_at_once_and_rows_may_change_places(kind, cell):
    made = model(kind, cell=cell)
    complete = made(SOURCE, SIZES, INPUTS)
    memory = made.encode(SOURCE, SIZES)
    state, rows = made.begin(memory), torch.arange(4)
    for place in range(INPUTS.shape[1]):
        logits, state = made.decode(INPUTS[rows, place : place + 1], memory, state)
        torch.testing.assert_close(logits[:, 0], complete[rows, place], atol=1e-12, rtol=0)
        turn = torch.tensor([2, 0, 0, 3, 1] if place == 1 else [*range(len(rows))])
        rows, memory = rows[turn], memory[turn]
        state = tuple(array[turn] for array in state)
    assert len(rows) == 5


@pytest.mark.parametrize("kind", WRITING)
def test_more_than_the_context_is_refused(kind):
    made = model(kind)
    with pytest.raises(ValueError, match="13 tokens do not fit a context of 12"):
        made(torch.zeros(1, 13, dtype=torch.int64), torch.tensor([13]), INPUTS[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bert"}, "kind must be one of rnn, bahdanau, luong, transformer, encoder"),
        ({"cell": "rnn"}, "cell must be one of gru, lstm"),
        ({"width": 7}, "width must be even"),
        ({"layers": 2}, "luong does not support layers"),
        ({"kind": "transformer", "cell": "lstm"}, "transformer does not support cell"),
        ({"kind": "bahdanau", "score": "dot"}, "does not support score='dot'"),
        ({"kind": "transformer", "heads": 3}, "3 heads do not divide a width of 8"),
        ({"dropout": 1.0}, "dropout must be at least 0"),
        ({"context": 0}, "context must be at least 1"),
    ],
    ids=str,
)
def test_sizes_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**{"kind": "luong", "vocabulary": 9, "context": 9, "width": 8, **change})


@pytest.mark.parametrize("kind", ["transformer", "bahdanau"])
def test_dropout_needs_a_seed_follows_it_and_ends_with_training(kind):
    made = model(kind, dropout=0.5).train()
    with pytest.raises(ValueError, match="needs a seed"):
        made(SOURCE, SIZES, INPUTS)
    one, same, other = (made(SOURCE, SIZES, INPUTS, Spec(seed=(seed, 0))) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    made.eval()
    assert torch.equal(made(SOURCE, SIZES, INPUTS), model(kind)(SOURCE, SIZES, INPUTS))


def test_additive_attention_is_the_formula():
    made = model("bahdanau")
    with torch.no_grad(), headway.trace("decoder.attention.*") as steps:
        memory = made.encode(SOURCE[:1], SIZES[:1])
        made.decode(INPUTS[:1, :2], memory, made.begin(memory))
    part, first = made.decoder.attention, made.decoder.initial(memory)[0]
    scores = additive(first[:, None], memory.states, part.W_query, part.W_key, part.v)[0, 0]
    torch.testing.assert_close(steps["decoder.attention.scores"][0, 0, 0, 0], scores)
    weights = torch.softmax(scores, -1)
    torch.testing.assert_close(steps["decoder.attention.weights"][0, 0, 0, 0], weights)
    context = weights @ memory.states[0]
    torch.testing.assert_close(steps["decoder.attention.context"][0, 0, 0, 0], context)
    assert list(steps) == [
        f"decoder.attention.{name}"
        for name in (
            "queries",
            "keys",
            "values",
            "hidden",
            "scores",
            "scaled",
            "weights",
            "context",
        )
    ]


@pytest.mark.parametrize("kind", ATTENDING)
def test_an_alignment_has_a_row_a_word_and_each_sums_to_one(kind):
    made = model(kind)
    result = alignment(made, SOURCES[0], TARGETS[0][:-1].tolist())
    assert result.shape == (len(TARGETS[0]), len(SOURCES[0]))
    np.testing.assert_allclose(result.sum(1), 1, rtol=4 * np.finfo(np.float32).eps)
    names = {"transformer": "decoder.blocks.2.cross_attention.weights"}
    with torch.no_grad(), headway.trace() as steps:
        made(SOURCE[:1, :7], SIZES[:1], torch.tensor([[START, *TARGETS[0][:-1]]]))
    seen = steps[names.get(kind, "decoder.attention.weights")]
    mean = seen[0].mean(0) if kind == "transformer" else seen.reshape(result.shape)
    np.testing.assert_allclose(result, mean, atol=1e-12)


def test_where_nothing_looks_back_there_is_no_alignment():
    with pytest.raises(ValueError, match="'rnn' have no cross-attention"):
        alignment(model("rnn"), SOURCES[0], [])


def exhaustive(made, source, longest):
    """The best of all translations up to this length, by trying each."""
    memory = read(made, [source])
    best = (-np.inf, [])

    def go_on(written, total, state):
        nonlocal best
        logits, state = made.decode(torch.tensor([[written[-1]]]), memory, state)
        logits = logits[0, -1]
        logits[[PADDING, START, MASK]] = -torch.inf
        scores = (total + logits.log_softmax(-1)).tolist()
        best = max(best, (scores[END], written[1:]))
        if len(written) <= longest:
            for token in range(FIRST, VOCABULARY):
                copied = [array[torch.tensor([0])] for array in state]
                go_on([*written, token], scores[token], copied)

    with torch.no_grad():
        go_on([START], 0.0, made.begin(memory))
    return best


@pytest.mark.parametrize("kind", WRITING)
def test_enough_beams_find_the_best_of_all_translations(kind):
    made = model(kind, context=3)
    for source in sentences([3, 2], seed=4):
        score, tokens = exhaustive(made, source, longest=2)
        (result,) = translate(made, [source], beams=400, penalty=0.0)
        assert result.complete
        assert result.tokens == tokens
        assert result.score == pytest.approx(score)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", WRITING)
def test_a_translation_does_not_depend_on_its_neighbours(kind, beams):
    made = model(kind)
    together = translate(made, SOURCES, beams=beams)
    alone = [translate(made, [source], beams=beams)[0] for source in SOURCES]
    assert [array.tokens for array in together] == [array.tokens for array in alone]
    np.testing.assert_allclose([e.score for e in together], [e.score for e in alone])


def test_one_beam_takes_the_likeliest_word_each_time():
    made = model("transformer")
    (result,) = translate(made, SOURCES[:1], beams=1)
    written = [START]
    while written[-1] != END and len(written) <= 12:
        source = torch.from_numpy(SOURCES[0])[None]
        logits = made(source, SIZES[:1], torch.tensor([written]))[0, -1]
        logits[[PADDING, START, MASK]] = -torch.inf
        written.append(int(logits.argmax()))
    assert result.tokens == [token for token in written[1:] if token != END]
    assert result.complete == (written[-1] == END)


def test_what_never_ends_is_cut_and_says_so(monkeypatch):
    made = model("luong", context=7)
    decode = made.decode

    def endless(*arguments):
        logits, state = decode(*arguments)
        logits[..., END] = -1e9
        return logits, state

    monkeypatch.setattr(made, "decode", endless)
    for beams in (1, 3):
        (result,) = translate(made, SOURCES[:1], beams=beams)
        assert not result.complete
        assert len(result.tokens) == 7
    with pytest.raises(ValueError, match="beams must be >= 1"):
        translate(made, SOURCES[:1], beams=0)


def test_the_length_penalty_prefers_longer_translations():
    result = [
        np.mean([len(e.tokens) for e in translate(model(kind), SOURCES, beams=6, penalty=penalty)])
        for penalty in (0.0, 3.0)
        for kind in WRITING
    ]
    assert sum(result[:4]) < sum(result[4:])


def test_lengths_on_the_cpu_need_no_value_of_the_device():
    """The device `meta` takes the place of a GPU: reading a value from it is an error."""
    states = torch.zeros(2, 3, 4, device="meta")
    memory = Memory(states, torch.tensor([3, 2]))
    assert memory.mask is not None
    assert Memory(states, torch.tensor([3, 3])).mask is None
    row = torch.zeros(2, 1, 1, 1, dtype=torch.int32, device="meta")
    key = torch.zeros(3, dtype=torch.int32, device="meta")
    assert memory.mask.predicate(row, row, row, key).device.type == "meta"
