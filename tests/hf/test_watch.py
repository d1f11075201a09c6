"""Tests of headway.watch: models of transformers against their own eager attention."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

import headway
from headway.attention import dispatch
from headway.attention.kernels import tiled_torch
from headway.attention.masks import Band
from headway.explore import notebook
from headway.explore.tracers import TraceRequest
from headway.hf import watch as watching
from headway.hf.families import BOUND, Measurement, examine, families, inputs, measure, tiny_model
from headway.hf.structure import structure
from headway.hf.transformers_masks import StructuredMask

FAMILIES = {family.name: family for family in families()}
ATTENTION = ("queries", "keys", "values", "scores", "scaled", "masked", "weights", "context")
PRE_NORM = [*(f"attention.{step}" for step in (*ATTENTION, "output")), "after_attention"]
PRE_NORM += ["mlp.output", "after_mlp"]
# The steps of block 0, if they are not those of a pre-norm block with a causal mask.
STEPS = {
    "gpt_neox": [step for step in PRE_NORM if step != "after_attention"],  # parallel
    "bert": [step for step in PRE_NORM if step not in ("after_attention", "attention.masked")],
    "gemma2": [*PRE_NORM[:5], "attention.capped", *PRE_NORM[5:]],
    "olmo2": [step for step in PRE_NORM if step != "after_attention"],  # norms after the attention
}
TOKENS = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))


def llama(kind="Llama", **options):
    config = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, f"{kind}Config")(**config, attn_implementation="eager")
        )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 10  # so that the weights are not nearly uniform
    return model.eval()


def traced(model, *args, only=None, **kwargs):
    with torch.no_grad(), headway.watch(model), headway.trace(only=only) as steps:
        model(*args, **kwargs)
    return steps


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neox", "gemma2", "gpt_oss", "bert", "deepseek_v3", "olmo2", "opt"]
)
def test_a_watched_model_equals_eager_and_names_its_steps(name):
    measurement = measure(tiny_model(FAMILIES[name]), FAMILIES[name])
    assert max(measurement.complete_text, measurement.padded, measurement.cached or 0) < BOUND
    first = [x.removeprefix("blocks.0.") for x in measurement.steps if x.startswith("blocks.0.")]
    assert first == STEPS.get(name, PRE_NORM)
    assert measurement.steps[0] == "embedded"
    end = ["logits"] if name == "bert" else ["final_norm", "logits"]
    assert measurement.steps[-len(end) :] == end


@pytest.mark.parametrize("name", ["t5", "pegasus"])
def test_an_encoder_decoder_has_two_stacks(name):
    measurement = measure(tiny_model(FAMILIES[name]), FAMILIES[name])
    assert max(measurement.complete_text, measurement.padded, measurement.cached) < BOUND
    weights = [step for step in measurement.steps if step.endswith(".weights")]
    assert weights == [
        *(f"encoder.blocks.{n}.self_attention.weights" for n in (0, 1)),
        *(
            f"decoder.blocks.{n}.{kind}_attention.weights"
            for n in (0, 1)
            for kind in ("self", "cross")
        ),
    ]
    if name == "pegasus":
        order = ["self_attention.output", "after_self_attention", "cross_attention.output"]
        order += ["after_cross_attention", "mlp.output", "after_mlp"]
        steps = [step.removeprefix("decoder.blocks.1.") for step in measurement.steps]
        assert [step for step in steps if step in order] == order


@pytest.mark.slow
def test_all_text_families():
    examined = {family.name: examine(family) for family in families()}
    watched = {name: m for name, m in examined.items() if isinstance(m, Measurement)}
    assert len(watched) >= 150
    assert all((m.cached or 0) < BOUND for m in watched.values())
    assert {name for name, m in watched.items() if not m.padded < BOUND} <= {"recurrent_gemma"}


def test_weights_are_those_of_eager():
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    models = {"llama": llama(), "mistral": llama("Mistral", sliding_window=3)}
    for model in models.values():
        expected = model(TOKENS, attention_mask=mask, output_attentions=True).attentions
        steps = traced(model, TOKENS, attention_mask=mask)
        for layer, weights in enumerate(expected):
            output = steps[f"blocks.{layer}.attention.weights"]
            assert torch.allclose(output[0, :, 3:], weights[0, :, 3:], atol=1e-6)
            assert torch.allclose(output[1], weights[1], atol=1e-6)
            assert (output[0, :, :3] == 0).all()  # rows of padding may attend to nothing


def test_weights_with_sinks_sum_to_less_than_one():
    family = FAMILIES["gpt_oss"]
    model = tiny_model(family)
    steps = traced(model, **inputs(family))
    expected = model(**inputs(family), output_attentions=True).attentions[1]
    weights = steps["blocks.1.attention.weights"]
    assert torch.allclose(weights, expected, atol=1e-6)
    assert (weights.sum(-1) < 1).all()
    assert steps.notes["blocks.1.attention.spec"].sink_logits.shape == (4,)


def test_the_output_of_bert_is_that_of_the_projection_outside_of_the_attention():
    model = tiny_model(FAMILIES["bert"])
    steps = traced(model, TOKENS)
    context = steps["blocks.1.attention.context"].transpose(1, 2).flatten(2)
    projection = model.bert.encoder.layer[1].attention.output.dense
    assert torch.allclose(steps["blocks.1.attention.output"], projection(context), atol=1e-6)


def test_a_block_that_is_shared_runs_several_times():
    steps = traced(tiny_model(FAMILIES["albert"]), TOKENS)
    assert steps["embedded"].shape == (2, 9, 32)
    assert steps["blocks.0.attention.weights"].shape == (2, 2, 4, 9, 9)  # two layers


@pytest.mark.parametrize("name", ["git", "pegasus_x"])
def test_models_without_sdpa_get_the_masks_of_eager(name):
    """A part of their attention does not call the interface."""
    measurement = measure(tiny_model(FAMILIES[name]), FAMILIES[name])
    assert max(measurement.complete_text, measurement.padded, measurement.cached) < BOUND


@pytest.mark.parametrize("argument", [None, True, False])
@pytest.mark.parametrize("attribute", [True, False])
def test_without_a_mask_is_causal_decides(argument, attribute):
    model = llama()
    module = model.model.layers[0].self_attn
    module.is_causal = attribute
    options = {} if argument is None else {"is_causal": argument}
    for rows in (1, 3, 5):
        queries, keys = torch.randn(2, 4, rows, 8), torch.randn(2, 2, 5, 8)
        call = partial(watching._attention, module, queries, keys, keys, None, **options)
        with headway.watch(model):
            expected = call()[0]  # of transformers
            with headway.trace() as steps:
                output = call()[0]
        assert torch.allclose(output, expected, atol=1e-6)
        is_causal = (attribute if argument is None else argument) and rows > 1
        assert ("blocks.0.attention.masked" in steps) == is_causal


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(2, 2)


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2, 3), nn.Linear(3, 2)


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp, self.norm = MoE(), nn.LayerNorm(2)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"mlp": MoE}, "mlp"),
        ({"up": lambda: nn.Linear(2, 3), "down": lambda: nn.Linear(3, 2)}, "down"),
        ({"up": lambda: nn.Linear(2, 3), "output": WithNorm}, "output.mlp"),
        ({"experts": MoE, "shared": MoE}, None),  # their sum is the update
        ({"up": lambda: nn.Linear(2, 3), "gate": MoE, "down": MoE}, None),
    ],
)
def test_the_mlp_of_a_block_is_found_or_left_out(parts, expected):
    block = nn.Module()
    block.attention, block.norm = Attention(), nn.LayerNorm(2)
    for name, part in parts.items():
        block.add_module(name, part())
    model = nn.Module()
    model.layers, model.config = nn.ModuleList([block]), transformers.PreTrainedConfig()
    (stack,) = structure(model).stacks
    assert stack.blocks[0].mlp is (block.get_submodule(expected) if expected else None)


def test_the_residual_stream_is_the_sum_of_its_parts():
    steps = traced(llama(), TOKENS)
    middle = steps["embedded"] + steps["blocks.0.attention.output"]
    assert torch.equal(steps["blocks.0.after_attention"], middle)
    assert torch.equal(steps["blocks.0.after_mlp"], middle + steps["blocks.0.mlp.output"])


def test_a_post_norm_of_the_update_belongs_to_the_stream():
    """In Gemma 2 the stream after the attention is not the input of the norm of the update."""
    family = FAMILIES["gemma2"]
    model = tiny_model(family)
    steps = traced(model, **inputs(family))
    layer = model.model.layers[0]
    with torch.no_grad():
        update = layer.post_attention_layernorm(steps["blocks.0.attention.output"])
    expected = steps["embedded"] + update
    assert torch.allclose(steps["blocks.0.after_attention"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "zero"),
    [
        ("blocks.1.attention.context", "model.layers.1.self_attn.o_proj"),
        ("blocks.1.attention.values", "model.layers.1.self_attn.v_proj"),
        ("blocks.1.attention.output", "model.layers.1.self_attn.o_proj"),
        ("blocks.0.mlp.output", "model.layers.0.mlp.down_proj"),
        ("embedded", "model.embed_tokens"),
        ("logits", "lm_head"),
    ],
)
def test_an_edit_to_zero_equals_a_module_of_zeros(step, zero):
    model = llama()
    with torch.no_grad(), headway.watch(model), headway.edit({step: 0.0}):
        edited = model(TOKENS).logits
    unedited = model(TOKENS).logits
    model.get_submodule(zero).weight.data.zero_()
    assert torch.allclose(edited, model(TOKENS).logits, atol=1e-5)
    assert not torch.allclose(edited, unedited, atol=1e-2)


@pytest.mark.parametrize("step", ["after_attention", "after_mlp"])
def test_an_edit_of_the_stream_reaches_the_logits(step):
    model = llama()
    saved = traced(model, TOKENS.flip(0))[f"blocks.1.{step}"]
    with torch.no_grad(), headway.watch(model), headway.edit({f"blocks.1.{step}": saved}):
        patched = model(TOKENS).logits
    assert torch.allclose(patched, model(TOKENS.flip(0)).logits, atol=1e-5)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def implementations(model):
    return [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


def test_the_model_is_restored_also_after_an_error():
    both = ("input_ids", "decoder_input_ids")
    for model, names in ((llama(), both[:1]), (tiny_model(FAMILIES["t5"]), both)):
        before = implementations(model)
        with headway.watch(model):
            assert set(implementations(model)) == {"headway"}
            assert hooks(model) == 0  # hooks take time: they exist only while a trace is open
            with headway.edit({"*": lambda value: value}):
                assert hooks(model)
                model(**dict.fromkeys(names, TOKENS))
            assert hooks(model) == 0
        nothing = pytest.warns(UserWarning, match="nothing was recorded")
        with nothing, headway.trace(), headway.watch(model):
            assert hooks(model)
        assert hooks(model) == 0
        with pytest.raises(ZeroDivisionError), headway.watch(model):
            raise ZeroDivisionError
        assert implementations(model) == before
        assert hooks(model) == 0


def test_watches_may_be_nested_and_overlap():
    model = llama()
    other = transformers.LlamaForCausalLM(model.config)  # it has the same config
    first, second, third = headway.watch(model), headway.watch(model), headway.watch(other)
    for each in (first, second, third):
        each.__enter__()
    first.__exit__(None, None, None)
    with headway.trace() as steps:
        model(TOKENS)
    assert steps["blocks.0.attention.weights"].shape == (2, 4, 9, 9)  # recorded once
    second.__exit__(None, None, None)
    assert hooks(model) == 0
    assert model.config._attn_implementation == "headway"  # the other model is still watched
    with headway.trace() as steps:
        other(TOKENS)
        model(TOKENS)
    assert steps["blocks.0.attention.weights"].shape == (2, 4, 9, 9)
    third.__exit__(None, None, None)
    assert model.config._attn_implementation == "eager"
    assert watching._switched == {}


def test_without_a_trace_the_attention_of_transformers_runs(monkeypatch):
    model, calls = llama(), []
    monkeypatch.setattr(dispatch, "run", lambda *_: calls.append(1))
    model.set_attn_implementation("sdpa")
    expected = model(TOKENS).logits
    with headway.watch(model):
        assert torch.equal(model(TOKENS).logits, expected)
    assert not calls


def test_the_formula_runs_only_in_the_traced_layer(monkeypatch):
    model, calls, formula = llama(), [], dispatch.attention
    monkeypatch.setattr(dispatch, "attention", lambda *x: (calls.append(1), formula(*x))[1])
    steps = traced(model, TOKENS, only="blocks.1.attention.weights")
    assert list(steps) == ["blocks.1.attention.weights"]
    assert len(calls) == 1


def test_rows_and_heads():
    model = llama()
    full = traced(model, TOKENS)
    with headway.watch(model), headway.trace(rows=slice(4, 6), heads=slice(2, 3)) as part:
        model(TOKENS)
    for step in ("queries", "masked", "weights", "context"):
        name = f"blocks.1.attention.{step}"
        assert torch.allclose(part[name], full[name][:, 2:3, 4:6], atol=1e-6)
    name = "blocks.1.attention.keys"
    assert torch.allclose(part[name], full[name][:, 1:2], atol=1e-6)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        sizes = (x.untyped_storage().nbytes() // x.itemsize for x in made)
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("padded", [False, True])
def test_a_trace_of_a_part_never_makes_a_whole_matrix(monkeypatch, window, padded):
    monkeypatch.setattr(watching, "LONG", 0)
    for name, size in (("ROWS", 64), ("COLUMNS", 64), ("FEW", 0)):
        monkeypatch.setattr(tiled_torch, name, size)
    tokens = 800
    model = llama("Mistral", sliding_window=window, max_position_embeddings=tokens)
    text = torch.randint(3, 99, (1, tokens))
    mask = torch.ones_like(text)
    mask[:, : 100 if padded else 0] = 0
    with (
        torch.no_grad(),
        headway.watch(model),
        Largest() as largest,
        headway.trace(only="*.weights", rows=slice(600, 610), heads=slice(1, 3)) as steps,
    ):
        model(text, attention_mask=mask)
    assert largest.elements < tokens**2 / 2
    assert steps["blocks.1.attention.weights"].shape == (1, 2, 10, tokens)
    full = traced(model, text, attention_mask=mask, only="blocks.1.attention.weights")
    expected = full["blocks.1.attention.weights"][:, 1:3, 600:610]
    assert torch.allclose(steps["blocks.1.attention.weights"], expected, atol=1e-5)


PACKED = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2, 2, 2]])
SHORT = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).bool()  # the rest is padding
KEPT = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9]).bool()
PREDICATES = {
    "causal": (masking_utils.causal_mask_function, Band(0)),
    "bidirectional": (masking_utils.bidirectional_mask_function, None),
    "window": (masking_utils.sliding_window_causal_mask_function(3), Band(0, 2)),
    "two-sided window": (masking_utils.sliding_window_bidirectional_mask_function(2), Band(-2, 2)),
    "chunks": (masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 2])), Band(0)),
    "packed": (
        masking_utils.and_masks(
            masking_utils.causal_mask_function, masking_utils.packed_sequence_mask_function(PACKED)
        ),
        Band(0),
    ),
    "or": (
        masking_utils.or_masks(
            masking_utils.causal_mask_function, masking_utils.blockwise_overlay(PACKED)
        ),
        Band(),
    ),
}
PLACES = {"whole": (9, 0, 0), "cached": (3, 6, 0), "cut": (3, 6, 2)}  # queries, q and kv offset


@pytest.mark.parametrize("name", PREDICATES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kept", [None, KEPT, SHORT], ids=["", "padded", "short"])
def test_the_structure_of_a_mask_is_its_matrix(name, place, kept):
    predicate, band = PREDICATES[name]
    rows, first, first_key = PLACES[place]
    arguments = {
        **{"batch_size": 2, "q_length": rows, "kv_length": 9 - first_key},
        **{"q_offset": torch.tensor(first), "kv_offset": first_key, "mask_function": predicate},
        **{"attention_mask": kept, "dtype": torch.float32},
    }
    mask = StructuredMask.of(arguments, masking_utils.sdpa_mask)
    expected = masking_utils.sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(mask & True, expected)  # any operation makes the matrix
    assert mask.shape == expected.shape
    with torch._C.DisableTorchFunctionSubclass():
        assert mask.untyped_storage().nbytes() == 1
    if mask.structure is None:
        assert expected.all()
        return
    assert (mask.structure.band, mask.structure.is_band and kept is None) == (
        band or Band(),
        kept is None and name in ("causal", "window", "two-sided window"),
    )
    x = torch.zeros(2, 3, rows, 4), torch.zeros(2, 3, 9 - first_key, 4)
    weights = headway.attention_weights(*x, mask=mask.structure, offset=mask.offset)
    assert torch.equal(weights > 0, expected.expand(2, 3, -1, -1))


@pytest.mark.parametrize("kind", ["boolean", "lowest number", "numbers"])
def test_a_mask_that_the_caller_makes(kind):
    model = llama()
    allowed = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    allowed |= torch.eye(9, dtype=torch.bool)
    lowest = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    mask = {"boolean": allowed, "lowest number": lowest, "numbers": lowest - PACKED[:, None, None]}
    float_mask = lowest if kind == "boolean" else mask[kind]  # what eager supports
    expected = model(TOKENS, attention_mask=float_mask, output_attentions=True).attentions[1]
    steps = traced(model, TOKENS, attention_mask=mask[kind])
    assert torch.allclose(steps["blocks.1.attention.weights"], expected, atol=1e-6)
    spec = steps.notes["blocks.1.attention.spec"]
    assert (spec.mask is None) == (kind == "numbers")


def test_packed_documents_and_static_caches_equal_eager():
    model = llama()
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, 9)
    expected = model(TOKENS, position_ids=positions, use_cache=False).logits
    with torch.no_grad(), headway.watch(model), headway.trace() as steps:
        output = model(TOKENS, position_ids=positions, use_cache=False).logits
    assert torch.allclose(output, expected, atol=1e-5)
    assert (steps["blocks.0.attention.weights"][:, :, 4:, :4] == 0).all()

    options = {"max_new_tokens": 3, "cache_implementation": "static", "disable_compile": True}
    options |= {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    expected = model.generate(TOKENS, **options)
    with headway.watch(model), headway.trace(only="*.weights"):
        output = model.generate(TOKENS, **options)
    for one, other in zip(output.logits, expected.logits, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_gradients_flow_through_the_steps():
    model = llama()
    model(TOKENS, labels=TOKENS).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with headway.watch(model), headway.trace() as steps:
        loss = model(TOKENS, labels=TOKENS).loss
    (of_weights,) = torch.autograd.grad(
        loss, steps["blocks.0.attention.weights"], retain_graph=True
    )
    assert of_weights.abs().sum() > 0
    loss.backward()
    for name, parameter in model.named_parameters():
        bound = 1e-4 * expected[name].abs().max()
        assert torch.allclose(parameter.grad, expected[name], rtol=0, atol=float(bound)), name


def test_dropout_is_refused_only_where_a_trace_asks():
    model = llama(attention_dropout=0.1).train()
    with headway.watch(model):
        assert model(TOKENS).logits.isfinite().all()
        with pytest.raises(ValueError, match=r"LlamaAttention has dropout.*call model\.eval\(\)"):
            traced(model, TOKENS)
        model.eval()
        assert len(traced(model, TOKENS))


@pytest.mark.parametrize("is_traced", [False, True])
def test_an_unknown_argument_is_refused(is_traced):
    model = llama()
    with headway.watch(model), ExitStack() as stack:
        if is_traced:
            stack.enter_context(headway.trace())
        with pytest.raises(ValueError, match="LlamaAttention passes 'tilt' to attention"):
            model(TOKENS, tilt=torch.ones(1))
        model(TOKENS, tilt=None)
    with pytest.raises(ValueError, match=r"'output_attentions'.*headway\.trace\(\)"):
        traced(tiny_model(FAMILIES["t5"]).encoder, TOKENS, output_attentions=True)


def test_models_that_cannot_be_watched():
    with pytest.raises(ValueError, match=r"expects a model of transformers .* got Linear"):
        headway.watch(torch.nn.Linear(2, 2)).__enter__()
    bloom = transformers.BloomConfig(vocab_size=9, hidden_size=8, n_head=2, n_layer=1)
    with pytest.raises(ValueError, match="BloomForCausalLM does not call attention through"):
        headway.watch(transformers.BloomForCausalLM(bloom)).__enter__()


def test_a_trace_without_watch_mentions_it():
    with pytest.warns(UserWarning, match=r"headway\.watch\(model\)"), headway.trace():
        llama()(TOKENS)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_oss", "bert", "t5", "bart"])
def test_the_explorer_shows_a_trace(name):
    family = FAMILIES[name]
    steps = traced(tiny_model(family), **inputs(family))
    words = [f"w{n}" for n in range(12)]
    texts = (words[:9], words) if family.task == "seq2seq" else words
    assert headway.show(steps, texts).html.startswith("<!doctype html>")
    _, manifest = notebook._RecordedTrace(steps, texts).trace(TraceRequest(""))
    sides = (9, 12) if family.task == "seq2seq" else (12, 12)
    assert (len(manifest["tokens"]), len(manifest["key_tokens"])) == sides
    assert ("inputs" in manifest) == (family.task == "seq2seq")
    assert len(manifest["attentions"]) == (6 if family.task == "seq2seq" else 2)
    recomputable = {facts["recomputable"] for facts in manifest["attentions"].values()}
    assert recomputable == {name != "gpt_oss"}
    # Only with the stream before and after the MLP.
    has_changes = name not in ("bert", "t5", "bart")
    assert list(manifest["changes"]) == (["blocks.0", "blocks.1"] if has_changes else [])
