"""A run that was cut off goes on bit for bit, and every item of a checkpoint is needed for that."""

import numpy as np
import pytest
import torch

from gpts import MODERN, gpt_config
from headway.data.tokenizers import Tokenizer
from headway.torch import weights
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training import checkpoints
from headway.training.loop import NotFinite, fit, resume
from headway.training.runs import Run, RunConfig
from headway.training.settings import TrainingConfig

TEXT = "the cat sat on the mat, the dog sat on the log. " * 40
TOKENIZER = Tokenizer.characters(TEXT)
TOKENS = TOKENIZER.encode(TEXT)
STEPS = 6


def config(preset=MODERN, dropout=0.2, **settings):
    sizes = {"vocabulary": 27, "context": 8, "width": 8, "layers": 1, "heads": 2}
    settings = {"optimizer": "muon", "micro_batch": 3, **settings}  # of 5: 3 and 2
    training = TrainingConfig(
        **{"steps": STEPS, "batch": 5, "save_every": 2, "evaluate_every": 4, **settings}
    )
    model = gpt_config(**sizes, **preset, dropout=dropout)
    return RunConfig("next-token", "text", "12ab", "char", "34cd", None, model, training)


def trainer(of):
    model = weights.build(of)
    return Trainer(model, task(model, of), of.training)


def task(model, of):
    return NextToken(model, TOKENS[:-200], TOKENS[-200:], of.training)


def state(of):
    """Everything of a trainer, copied."""
    parts = of.state().items()
    return {f"{part}/{n}": array.copy() for part, some in parts for n, array in some.items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def expected(of, tmp_path):
    """The run that nobody interrupts: its end and its log."""
    run = Run.create(tmp_path / "expected", of, TOKENIZER)
    uninterrupted = trainer(of)
    fit(uninterrupted, run, of)
    return state(uninterrupted), told(run)


def told(run):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in run.logged()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("preset", [{}, MODERN], ids=["gpt2", "modern"])
def test_resumed_twice_equals_uninterrupted(tmp_path, optimizer, preset):
    of = config(preset, optimizer=optimizer)
    end, log = expected(of, tmp_path)
    run = Run.create(tmp_path / "cut", of, TOKENIZER)
    first = trainer(of)
    fit(first, run, of, interrupted=lambda: first.step == 1)
    for stop in (3, STEPS):
        again = trainer(of)
        assert resume(again, run, of) == []
        assert 0 < again.step < stop
        fit(again, run, of, interrupted=lambda stop=stop, again=again: again.step == stop)
    assert same(state(again), end)
    assert told(run) == log
    last = [path / f"checkpoints/step-{STEPS:06d}" for path in (tmp_path / "expected", run.path)]
    for file in last[0].iterdir():
        assert file.read_bytes() == (last[1] / file.name).read_bytes()


def test_cut_off_between_two_micro_batches(tmp_path, monkeypatch):
    of = config()
    end, log = expected(of, tmp_path)
    run = Run.create(tmp_path / "cut", of, TOKENIZER)
    cut = trainer(of)
    batches = NextToken.batches

    def dies(self, step):
        parts = batches(self, step)
        yield next(parts)
        if step == 3:
            raise RuntimeError("killed")
        yield from parts

    monkeypatch.setattr(NextToken, "batches", dies)
    with pytest.raises(RuntimeError, match="killed"):
        fit(cut, run, of)
    assert any(p.grad.abs().sum() > 0 for p in cut.model.parameters())  # some of it was summed
    monkeypatch.setattr(NextToken, "batches", batches)
    again = trainer(of)
    resume(again, run, of)
    assert again.step == 2
    assert len(run.logged()) == 2
    fit(again, run, of)
    assert same(state(again), end)
    assert told(run) == log


def ends_the_same(of, run, end):
    """Whether the run goes on to the end that it would have had. Refusing to go on is no."""
    again = trainer(of)
    try:
        resume(again, run, of)
    except ValueError:
        return False
    fit(again, run, of)
    return same(state(again), end)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_item_of_a_checkpoint_is_needed(tmp_path, optimizer):
    of = config(optimizer=optimizer)
    end, _ = expected(of, tmp_path)
    run = Run.create(tmp_path / "cut", of, TOKENIZER)
    first = trainer(of)
    fit(first, run, of, interrupted=lambda: first.step == 3)
    checkpoint = checkpoints.latest(run.checkpoints)
    loaded = {part: checkpoints.load(checkpoint, part) for part in ("model", "optimizer")}
    about = loaded["model"][1]

    def rewritten(change):
        """The run's checkpoint again, with a change."""
        parts = {part: dict(tensors) for part, (tensors, _) in loaded.items()}
        changed = {**about}
        change(parts, changed)
        for old in checkpoints.complete(run.checkpoints):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        checkpoints.save(run.checkpoints, 3, parts, changed)

    rewritten(lambda parts, about: None)
    assert ends_the_same(of, run, end)
    for part, (tensors, _) in loaded.items():
        for name, tensor in tensors.items():
            rewritten(lambda parts, _, part=part, name=name: parts[part].pop(name))
            assert not ends_the_same(of, run, end), f"{part}/{name} is taken out"
            if tensor.any():
                empty = {name: np.zeros_like(tensor)}
                rewritten(lambda parts, _, part=part, empty=empty: parts[part].update(empty))
                assert not ends_the_same(of, run, end), f"{part}/{name} is zeros"
    for name in about:
        rewritten(lambda _, about, name=name: about.pop(name))
        assert not ends_the_same(of, run, end), f"{name} is taken out"
    for name in about["machine"].keys() - {"processes"}:  # earlier versions had only one
        less = {key: value for key, value in about["machine"].items() if key != name}
        rewritten(lambda _, about, less=less: about.update(machine=less))
        assert not ends_the_same(of, run, end), f"{name} is taken out"
    rewritten(lambda _, about: about.update(step=2))
    assert not ends_the_same(of, run, end)


def test_the_number_of_threads_is_applied_again_and_a_difference_told(tmp_path, monkeypatch):
    of = config()
    run = Run.create(tmp_path / "run", of, TOKENIZER)
    first, threads = trainer(of), torch.get_num_threads()
    fit(first, run, of, interrupted=lambda: first.step == 2)
    try:
        torch.set_num_threads(threads + 1)
        assert resume(trainer(of), run, of) == []
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch, "__version__", "9.9")
    (told,) = resume(trainer(of), run, of)
    assert told.startswith("version was 2.")
    assert told.endswith("is 9.9")


def test_the_micro_batch_may_change(tmp_path):
    of = config()
    run = Run.create(tmp_path / "run", of, TOKENIZER)
    first = trainer(of)
    fit(first, run, of, interrupted=lambda: first.step == 2)
    smaller = config(micro_batch=2)
    second = trainer(smaller)
    resume(second, run, smaller)
    assert second.step == 2
    fit(second, run, smaller)
    assert second.step == of.training.steps


@pytest.mark.parametrize(("field", "value"), [("batch", 6), ("seed", 1), ("learning_rate", 0.5)])
def test_another_config_is_refused_and_the_field_named(tmp_path, field, value):
    of = config()
    run = Run.create(tmp_path / "run", of, TOKENIZER)
    first = trainer(of)
    fit(first, run, of, interrupted=lambda: first.step == 2)
    changed = config(**{field: value})
    with pytest.raises(ValueError, match=f"{field} has changed"):
        resume(trainer(changed), run, changed)


def test_gradients_do_not_depend_on_how_the_batch_is_cut():
    result = []
    for micro_batch in (None, 1, 3, 4):
        of = config(micro_batch=micro_batch, dropout=0.0)
        model = weights.build(of).double()
        some = Trainer(model, task(model, of), of.training)
        some.advance()
        result.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in result[1:]:
        torch.testing.assert_close(other, result[0], rtol=1e-12, atol=1e-14)


def test_micro_batches_drop_the_cells_of_the_whole_batch():
    """With dropout, too, the gradients do not depend on how the batch is cut."""
    result = []
    for micro_batch in (None, 1, 4):
        of = config(micro_batch=micro_batch, dropout=0.3)
        model = weights.build(of).double()
        some = Trainer(model, task(model, of), of.training)
        some.advance()
        some.advance()
        result.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in result[1:]:
        torch.testing.assert_close(other, result[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_no_number_stops_names_its_place_and_loses_nothing(tmp_path, optimizer):
    of = config(optimizer=optimizer)
    run = Run.create(tmp_path / "run", of, TOKENIZER)
    sick = trainer(of)

    def poison(done, seconds):
        if done.step == 3:
            with torch.no_grad():
                sick.model.blocks[0].mlp.up.weight[0, 0] = float("nan")

    message = r"loss of step 4 is nan: .* that of blocks\.0\.mlp\.up; .*step-000002"
    with pytest.raises(NotFinite, match=message):
        fit(sick, run, of, on_step=poison)
    assert checkpoints.latest(run.checkpoints).name == "step-000002"
    healthy = trainer(of)
    resume(healthy, run, of)
    assert all(np.isfinite(array).all() for array in state(healthy).values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_leaves_the_weights(optimizer):
    of = config(optimizer=optimizer)
    sick = trainer(of)
    sick.advance()
    before = state(sick)
    factor = [torch.inf]
    hook = sick.model.blocks[0].attention.q.weight.register_hook(lambda g: g * factor[0])
    first = sick.start()
    factor[0] = 1.0
    second = sick.start()  # finite, but it must not change the weights either
    assert np.isfinite(second.result().loss)
    assert same(state(sick), before)
    factor[0] = torch.inf
    with pytest.raises(NotFinite, match=r"every output is finite, but the gradient of blocks\."):
        first.result()
    hook.remove()
    assert sick.step == 1
    assert np.isfinite(sick.advance().loss)
    assert not same(state(sick), before)


def test_a_step_that_needs_too_much_memory_is_one_line_and_keeps_the_checkpoint(tmp_path):
    of = config(micro_batch=2)
    run = Run.create(tmp_path / "run", of, TOKENIZER)
    large = trainer(of)

    def fill(done, seconds):
        if done.step == 3:
            large.model.blocks[0].mlp.register_forward_hook(
                lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
            )

    message = "out of memory on cpu, with 2 of the .* --micro-batch.*step-000002"
    with pytest.raises(ValueError, match=message):
        fit(large, run, of, on_step=fill)
    assert checkpoints.latest(run.checkpoints).name == "step-000002"
    other = trainer(of)
    other.model.blocks[0].mlp.register_forward_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("another error"))
    )
    with pytest.raises(RuntimeError, match="another error"):
        fit(other, Run.create(tmp_path / "other", of, TOKENIZER), of)


def test_the_loop_starts_steps_ahead_and_logs_every_one_of_them(tmp_path):
    """On a GPU a step is not ready when it is started; here the trainer pretends."""
    of = config(save_every=100)
    usual, ahead = (Run.create(tmp_path / name, of, TOKENIZER) for name in ("usual", "ahead"))
    fit(trainer(of), usual, of)
    late = trainer(of)
    start, waiting = late.start, []

    class Late:
        def __init__(self, pending):
            self.pending = pending
            waiting.append(self)

        def is_ready(self):
            return False

        def result(self):
            waiting.remove(self)
            return self.pending.result()

    most = []
    late.start = lambda: most.append(len(waiting)) or Late(start())
    fit(late, ahead, of)
    assert max(most) == 2  # steps in flight when another one is started
    assert not waiting
    logs = [[{**r, "seconds": 0} for r in run.logged()] for run in (usual, ahead)]
    assert logs[0] == logs[1]
