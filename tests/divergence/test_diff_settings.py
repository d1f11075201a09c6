"""How a side is run: caches, padding, kernels, formats, checkpoints and trace files."""

import copy
import itertools
import threading

import pytest
import torch
import transformers

import command
import headway
import planted
from headway.divergence.calls import Call, joined
from headway.divergence.measure import MISSING, difference
from headway.divergence.render import conclusion
from headway.explore import trace_file

CACHE = [fault for fault in planted.FAULTS if fault.kind == "cache"]
# The port that takes the wrong position has as many keys as features there, so that its transposed
# keys are taken for keys; the scores are named.
MISSED = {"mistral: the position is the length of the rolling cache"}


def models(folder, auto=transformers.AutoModelForCausalLM):
    return auto.from_pretrained(folder)


@pytest.mark.parametrize("port", planted.WITH_CACHE)
@pytest.mark.parametrize("size", [1, 4])
def test_a_right_port_with_its_cache_is_the_same(port, size, folders):
    model, _ = planted.load(port, None, folders[port])
    result = headway.diff(folders[port], model, planted.tokens(), b_settings={"cache": size})
    assert result.is_same
    where = {1: "token 10", 4: "tokens from 8"}[size]
    assert result.titles[1].endswith(f" (cache={size}), {where} of 11")


# Those of Llama take seconds each; one of them is enough in each run.
SLOW = [f for f in CACHE if f.port == "llama"][1:]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.slow if fault in SLOW else ())
        for fault in CACHE
        if str(fault) not in MISSED
    ],
    ids=str,
)
def test_a_wrong_cache_is_named_and_proved(fault, folders):
    model, _ = planted.load(fault.port, fault, folders[fault.port])
    assert headway.diff(folders[fault.port], model, planted.tokens()).is_same
    result = headway.diff(folders[fault.port], model, planted.tokens(), b_settings={"cache": 1})
    assert result.first == fault.first
    assert result.is_proved
    assert not result.is_same


SETTINGS = [
    {},
    {"cache": 1},
    {"cache": "5"},
    {"pad_left": 3},
    {"pad_left": 2, "cache": 4},
    {"pad_right": 3},
    {"dtype": "bfloat16"},
    {"dtype": "float16", "cache": 3},
    {"attention": "tiled"},
    {"attention": "tiled", "cache": 4},
    {"engine": "jax"},
    {"engine": "jax", "cache": 3},
    {"engine": "jax", "pad_right": 2},
    {"engine": "jax", "dtype": "bfloat16"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("port", ["gpt2", "mistral"])
def test_a_model_is_the_same_in_any_way(port, settings, folders):
    result = headway.diff(folders[port], folders[port], b_settings=settings)
    assert result.is_same, result
    assert {step.state for step in result.steps} <= {"same"}
    assert headway.diff(folders[port], folders[port], a_settings=settings).is_same


@pytest.mark.slow
def test_any_two_ways_agree(folders):
    for one, two in itertools.product(SETTINGS, SETTINGS):
        result = headway.diff(folders["llama"], folders["llama"], a_settings=one, b_settings=two)
        assert result.is_same, (one, two, result)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "eager"},
        {"attention": "sdpa"},
        {"cache": 3},
        {"attention": "sdpa", "cache": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("port", ["gpt2", "qwen3", "mistral"])
def test_a_model_of_transformers_is_the_same_in_any_way(port, settings, folders):
    result = headway.diff(folders[port], models(folders[port]), b_settings=settings)
    assert result.is_same, result
    assert len(result.steps) > 15


def test_a_wrong_attention_function_of_transformers_is_named(folders, monkeypatch):
    module = transformers.models.llama.modeling_llama
    right = module.eager_attention_forward

    def wrong(*arguments, **options):
        options["scaling"] *= 1.01
        return right(*arguments, **options)

    monkeypatch.setattr(module, "eager_attention_forward", wrong)
    model = models(folders["llama"])
    result = headway.diff(folders["llama"], model, b_settings={"attention": "eager"})
    assert result.first == "blocks.0.attention.context"
    assert result.is_proved
    assert headway.diff(folders["llama"], model, b_settings={"attention": "sdpa"}).is_same


class Cached(torch.nn.Module):
    """A port of GPT-2 whose cache is another argument; by default it keeps the cache itself."""

    def __init__(self, port):
        super().__init__()
        self.port, self.own = port, []

    def forward(self, tokens, start_pos):
        if start_pos == 0:
            self.own = []
        return self.port(tokens, self.own)


class Returned(Cached):
    def forward(self, tokens, layer_past=None):
        cache = [] if layer_past is None else [[*layer] for layer in layer_past]
        return self.port(tokens, cache), cache


class Forgotten(Cached):
    def forward(self, tokens, layer_past=None):
        return self.port(tokens)


@pytest.mark.parametrize("kind", [Cached, Returned])
def test_a_cache_that_is_returned_or_kept(kind, folders):
    wrong = next(f for f in CACHE if f.port == "gpt2" and "positions restart" in f.name)
    for fault in (None, wrong):
        model = kind(planted.load("gpt2", fault, folders["gpt2"])[0])
        result = headway.diff(folders["gpt2"], model, b_settings={"cache": 3})
        assert result.first == (fault.first if fault else None)
    model.forward = lambda tokens, layer_past: tokens @ tokens
    with pytest.raises(ValueError, match=r"raised RuntimeError: .* \(in the call of token 0\)"):
        headway.diff(folders["gpt2"], model, b_settings={"cache": 3})
    with pytest.raises(ValueError, match="Forgotten returned no layer_past, and added nothing"):
        headway.diff(folders["gpt2"], Forgotten(model.port), b_settings={"cache": 3})


def test_padding_on_the_left_shows_that_positions_are_missing(folders):
    """transformers numbers the columns of a padded batch, unless it gets position_ids."""
    model = models(folders["gpt2"])
    result = headway.diff(folders["gpt2"], model, b_settings={"pad_left": 3})
    assert result.first == "embedded"
    assert result.is_proved

    class Numbered(type(model)):
        def forward(self, input_ids, attention_mask=None, **options):
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            mask = {"attention_mask": attention_mask, "position_ids": positions}
            return super().forward(input_ids, **mask, **options)

    model.__class__ = Numbered
    assert headway.diff(folders["gpt2"], model, b_settings={"pad_left": 3}).is_same
    # Rotary scores do not depend on where a text begins.
    for port in ("llama", "qwen3"):
        result = headway.diff(folders[port], models(folders[port]), b_settings={"pad_left": 3})
        assert result.is_same
        assert "the logits agree although steps differ, blocks.0.attention.queries" in str(result)


def test_padded_rows_that_are_not_masked_are_seen(folders):
    bert = models(folders["bert"], transformers.AutoModelForMaskedLM)
    assert headway.diff(folders["bert"], bert, b_settings={"pad_right": 4}).is_same

    class Unmasked(type(bert)):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)

    bert.__class__ = Unmasked
    result = headway.diff(folders["bert"], bert, b_settings={"pad_right": 4})
    assert result.first == "blocks.0.attention.weights"


def test_a_text_is_joined_from_calls_and_padding_is_removed():
    calls = [Call(start, start + 2, 2, 4) for start in (0, 2, 4)]
    whole = torch.randn(1, 6, 3).double()
    scores = torch.randn(1, 1, 6, 6).double()
    parts = [
        (
            call,
            {
                "embedded": whole[:, call.start : call.stop],
                "keys": whole[:, : call.stop],
                "scores": scores[..., call.start : call.stop, : call.stop],
                "masked": scores[..., call.start : call.stop, : call.stop],
            },
        )
        for call in calls
    ]
    steps = joined(parts)
    assert torch.equal(steps["embedded"], whole[:, 2:])
    assert torch.equal(steps["keys"], whole[:, 2:])
    assert torch.equal(steps["scores"][..., 2:, :], scores[..., 4:, 2:])
    assert (steps["scores"][..., :2, 2:] == MISSING).all()
    assert (steps["masked"][..., :2, 2:] == -torch.inf).all()
    assert difference(scores[..., 2:, 2:], steps["scores"]) == 0


def test_two_checkpoints_of_a_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 40)
    words = ("--steps", "4", "--save-every", "2", "--context", "16", "--width", "16")
    words += ("--layers", "1", "--heads", "2", "--batch", "2", "--optimizer", "adamw")
    command.headway(tmp_path, "train", str(text), "--name", "run", *words)
    runs = str(tmp_path / "runs")
    result = headway.diff("run", "run", "the cat", b_settings={"checkpoint": 2}, runs=runs)
    assert result.first == "embedded"
    assert result.titles == ("run", "run (checkpoint=2)")
    assert "still computes other logits" in conclusion(result) or result.is_proved
    assert headway.diff("run", "run", b_settings={"checkpoint": "4"}, runs=runs).is_same
    with pytest.raises(ValueError, match=r"checkpoint must be one of .*2, 4 \(got 3\)"):
        headway.diff("run", "run", b_settings={"checkpoint": 3}, runs=runs)
    # Trace files, against each other and against the model.
    for name, sentence in (("one", "the cat"), ("two", "the cat"), ("other", "the mat")):
        command.headway(tmp_path, "trace", "run", sentence, "-o", f"{name}.safetensors")
    one, two, other = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "other"))
    assert headway.diff(one, two).is_same
    assert headway.diff(one, "run", runs=runs).is_same
    assert headway.diff("run", one, runs=runs).is_same
    with pytest.raises(ValueError, match="was recorded with other tokens"):
        headway.diff(one, other)
    with pytest.raises(ValueError, match="is a trace file, which has no settings"):
        headway.diff(one, two, b_settings={"dtype": "bfloat16"})
    tensors, manifest = trace_file.load(one)
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    for step in ("blocks.0.mlp.output", "logits"):
        changed[step] *= 1.01
    trace_file.save(two, changed, manifest)
    result = headway.diff(one, two)
    assert result.first == "blocks.0.mlp.output"
    wrong = [step.name for step in result.steps if step.state == "different"]
    assert wrong == ["blocks.0.mlp.output", "logits"]
    assert "mlp.output could not be replaced" in conclusion(result)
    # Against a module, whose operations are found by their numbers.
    model = headway.load(tmp_path / "runs" / "run", device="cpu").model
    plain = Returns(lambda tokens: plain.model(tokens))
    plain.model = model
    assert headway.diff(one, plain).is_same
    with torch.no_grad():
        model.blocks[0].mlp.down.weight *= 1.01
    assert headway.diff(one, plain).first == "blocks.0.mlp.output"
    result = headway.diff(two, "run", runs=runs)
    # The trace has the wrong output, and the right sum.
    causes = ["blocks.0.mlp.output", "blocks.0.after_mlp", "logits"]
    assert [cause.name for cause in result.causes] == causes


def test_the_wrong_cache_that_is_named_otherwise_is_proved(folders):
    (fault,) = [fault for fault in CACHE if str(fault) in MISSED]
    model, _ = planted.load(fault.port, fault, folders[fault.port])
    result = headway.diff(folders[fault.port], model, planted.tokens(), b_settings={"cache": 1})
    assert result.first == "blocks.0.attention.scores"
    assert result.is_proved
    assert not result.is_same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": 0}, "cache must be an integer of at least 1"),
        ({"pad_left": "x"}, r"pad_left must be an integer of at least 0 \(got 'x'\)"),
        ({"cache": 1, "pad_right": 1}, "cache and pad_right cannot be combined"),
        ({"checkpoint": 3}, "is not a run; remove checkpoint=3"),
        ({"engine": "jax", "pad_left": 1}, "JAX does not support padding on the left"),
        ({"pad_left": 40}, "1 tokens and 40 of padding do not fit a context of 32"),
        ({"attention": "flsh"}, "attention must be one of"),
    ],
    ids=str,
)
def test_what_a_side_does_not_support_is_one_line(settings, message, folders):
    with pytest.raises(ValueError, match=message):
        headway.diff(folders["llama"], folders["llama"], b_settings=settings)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_kernel_that_cannot_run_is_one_line(folders):
    flex = {"attention": "flex"}  # it has no float64
    assert headway.diff(folders["llama"], folders["llama"], b_settings=flex).is_same
    with pytest.raises(ValueError, match=r"\(attention=sdpa-cudnn\) raised Unsupported"):
        headway.diff(folders["llama"], folders["llama"], b_settings={"attention": "sdpa-cudnn"})
    for device in ("cuda", "foo") if not torch.cuda.is_available() else ("foo",):
        with pytest.raises(ValueError, match="device"):
            headway.diff(folders["llama"], folders["llama"], b_settings={"device": device})


def test_a_number_format_that_overflows_is_not_the_same(folders):
    model = headway.load(folders["llama"], device="cpu", dtype="float32").model
    with torch.no_grad():
        model.blocks[1].mlp.down.weight *= 3e6
    result = headway.diff(model, model, b_settings={"dtype": "float16"})
    assert not result.is_same
    assert "blocks.1.mlp.output is too large for float32 or float16" in result.notes[0]
    assert conclusion(result) == "The logits were not compared."


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"attention": "tiled"}], ids=str)
def test_a_format_does_not_hide_a_fault_that_float64_shows(settings, folders):
    wrong = headway.load(folders["llama"], device="cpu", dtype="float32").model
    with torch.no_grad():
        wrong.blocks[1].mlp.down.weight *= 1.005
    for other in ({}, settings):
        result = headway.diff(folders["llama"], wrong, a_settings=other, b_settings=settings)
        assert result.first == "blocks.1.mlp.output"
        assert result.is_proved


def test_very_low_numbers_are_numbers_unless_scores_are_masked():
    low = torch.tensor([-2e5, 1.0])
    assert difference(low, torch.tensor([-6e5, 1.0])) == pytest.approx(2)
    hidden = torch.tensor([-torch.inf, 1.0])
    assert difference(hidden, torch.tensor([-1e9, 1.0])) == 0
    assert difference(hidden, torch.tensor([2.0, 1.0])) == torch.inf


def test_watches_with_and_without_a_function_can_be_nested(folders):
    model, tokens = models(folders["llama"]), planted.tokens()
    with headway.watch(model):
        with headway.watch(model, "eager"), headway.trace() as inner:
            model(tokens)
        with headway.trace() as outer:
            model(tokens)
    assert "blocks.0.attention.scores" not in inner
    assert "blocks.0.attention.scores" in outer
    assert model.config._attn_implementation == "sdpa"


def test_conclusions_say_what_was_done(folders):
    short = headway.load(folders["llama"], device="cpu", dtype="float32").model
    short.blocks = short.blocks[:2]
    for b, words in (
        (short, "blocks.2.attention_norm could not be replaced, so the comparison ends there"),
        (folders["qwen3"], "embedded could not be replaced"),
        (folders["llama"], "computes the same logits as llama, up to rounding"),
    ):
        assert words in conclusion(headway.diff(folders["llama"], b))


def test_a_module_is_as_before(folders):
    model, module = planted.load("gpt2", None, folders["gpt2"])
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    headway.diff(folders["gpt2"], model, backward=True, optimizer=module.optimizer)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Returns(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, tokens):
        return self.value(tokens)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda tokens: tokens, r"returned int64 \(2, 23\); expected logits"),
        (lambda tokens: [1], "returned list; expected logits"),
        (lambda tokens: torch.zeros(2, 1, 61), r"logits \(2, 1, 61\) instead of \(2, 23, 61\)"),
    ],
)
def test_what_is_not_logits_is_one_line(value, message, folders):
    with pytest.raises(ValueError, match=message):
        headway.diff(folders["llama"], Returns(value))


def test_a_dictionary_with_logits(folders):
    model, _ = planted.load("llama", None, folders["llama"])
    as_dict = Returns(lambda tokens: {"logits": as_dict.model(tokens)})
    as_dict.model = model
    assert headway.diff(folders["llama"], as_dict).is_same


def test_files_and_modules_that_are_no_models_are_one_line(folders, tmp_path):
    (tmp_path / "p.py").write_text("import sys\nfive = 5\n\ndef load():\n    sys.exit(7)\n")
    locked = Returns(lambda tokens: tokens)
    locked.lock = threading.Lock()
    for b, message in (
        ("p.py:five", "must be a module or a function that returns one"),
        ("p.py:load", r"p.py:load\(\) raised SystemExit: 7"),
        ("p.py", "p.py needs the name of a function, as in .*p.py:load"),
        (locked, "copying Returns raised TypeError"),
    ):
        target = str(tmp_path / b) if isinstance(b, str) else b
        with pytest.raises(ValueError, match=message):
            headway.diff(folders["llama"], target)


def test_what_a_module_does_not_support_is_one_line(folders):
    model = models(folders["llama"])
    with pytest.raises(ValueError, match=r"attention must be one of eager, .*sdpa"):
        headway.diff(folders["llama"], model, b_settings={"attention": "flash"})
    port, _ = planted.load("qwen3", None, folders["qwen3"])
    with pytest.raises(ValueError, match="forward takes past_key_values, cache or start_pos"):
        headway.diff(folders["qwen3"], port, b_settings={"cache": 1})
    with pytest.raises(ValueError, match="pad_left= needs a model whose steps have names"):
        headway.diff(folders["qwen3"], port, b_settings={"pad_left": 1})
    before = copy.deepcopy(model.state_dict())
    headway.diff(folders["llama"], model, b_settings={"cache": 2})
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
