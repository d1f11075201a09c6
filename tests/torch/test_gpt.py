"""GPT: its table, its first values, its cache, its dropout, any rung in it."""

from functools import partial

import numpy as np
import pytest
import torch

import headway
from gpts import GPT2, MODERN, gpt_config
from headway.attention import dispatch
from headway.attention.masks import documents, padding
from headway.attention.normalizers import entmax15, sparsemax
from headway.attention.positions import alibi, relative
from headway.attention.spec import Spec
from headway.ladder.rungs import LADDER
from headway.models.gpt import POSITIONS, shapes
from headway.torch import GPT
from headway.torch.gpt import multi_head, of_rung

PRESETS = {
    "gpt2": GPT2,
    "modern": MODERN,
    "llama": {**MODERN, "tied": False, "kv_heads": 2, "qk_norm": False},
    "untied grouped gpt2": {"tied": False, "kv_heads": 1},
    "no positions": {"positions": "none"},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi"},
    "relative": {**MODERN, "positions": "relative", "mlp": "relu2", "kv_heads": 2},
    "wide heads": {**MODERN, "d_k": 10, "d_mlp": 7, "kv_heads": 2},
    "entmax": {"normalizer": "entmax15", "scale": 0.7},
}
TOKENS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


def config(**changes):
    sizes = {"vocabulary": 11, "context": 10, "width": 24, "layers": 2, "heads": 4}
    return gpt_config(**{**sizes, **changes})


def lively(model):
    """Larger weights than the first ones, so that nothing hides in near-uniform attention."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_(
                    torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) / 4
                )
    return model


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_module_has_the_parameters_of_the_table(preset):
    model = GPT(config(**preset))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == shapes(model.config)
    assert (model.head.weight is model.embedding.weight) == model.config.tied


def test_gpt2_has_its_124_million_parameters():
    config = gpt_config(vocabulary=50257, context=1024, width=768, layers=12, heads=12)
    assert sum(np.prod(shape) for shape in shapes(config).values()) == 124_439_808


def test_first_values_are_a_function_of_seed_and_name_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other, third = GPT(config()), GPT(config(layers=2)), GPT(config(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, p), q, r in zip(
        one.named_parameters(), other.parameters(), third.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert torch.equal(p, r) == (p.ndim == 1), name
    stds = {name: p.std().item() for name, p in one.named_parameters() if p.ndim > 1}
    assert stds["blocks.0.mlp.up.weight"] == pytest.approx(0.02, rel=0.1)
    assert stds["blocks.0.mlp.down.weight"] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 5], [7, 1, 1], [1, 3, 5]])
def test_cached_equals_whole_however_the_prompt_is_cut(preset, pieces):
    model = lively(GPT(config(**preset)).double()).eval()
    caches = model.caches()
    result = torch.cat([model(piece, caches=caches) for piece in TOKENS.split(pieces, 1)], dim=1)
    assert torch.allclose(result, model(TOKENS), rtol=0, atol=1e-10)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_no_logit_depends_on_a_later_token(preset):
    model = lively(GPT(config(**preset))).eval()
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    one, other = model(TOKENS), model(changed)
    assert torch.equal(one[:, :5], other[:, :5])
    assert (one[:, 5:] != other[:, 5:]).any(-1).all()


@pytest.mark.parametrize("name", LADDER)
def test_any_rung_in_the_attentions_place(name):
    model = lively(GPT(config(dropout=0.1), of_rung(LADDER[name])))
    logits = model(TOKENS, Spec(seed=(0, 1)))
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    assert torch.allclose(model(TOKENS)[:, :5], model(changed)[:, :5], atol=1e-6)
    assert not model.can_cache


def test_a_rung_with_the_weights_of_the_production_attention_gives_its_logits():
    def bare(config):
        return headway.torch.MultiHeadAttention(config.width, heads=config.attention.heads)

    model = lively(GPT(config(norm="layer"), bare)).double().eval()
    rung = GPT(config(norm="layer"), of_rung(LADDER["multihead"])).double().eval()
    names = {"q.weight": "W_query", "k.weight": "W_key"}
    names |= {"v.weight": "W_value", "output.weight": "W_output"}
    state = {}
    for name, value in model.state_dict().items():
        own = next((n for n in names if name.endswith(f"attention.{n}")), None)
        state[name.replace(own, names[own]) if own else name] = value.mT if own else value
    rung.load_state_dict(state)
    assert torch.allclose(rung(TOKENS), model(TOKENS), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "choice",
    [
        *(MODERN, {"kv_heads": 2}, {"positions": "alibi"}, {"scale": 1.0}),
        *({"normalizer": "sparsemax"}, {"norm": "rms", "d_k": 5}, {"causal": False}),
    ],
    ids=str,
)
def test_a_rung_refuses_what_only_production_has(choice):
    with pytest.raises(ValueError, match="remove one of the two settings"):
        GPT(config(**choice), of_rung(LADDER["multihead"]))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"positions": "none"}, {}),
        ({"positions": "alibi"}, {"bias": alibi(4, torch.arange(9), torch.arange(9))}),
        ({"positions": "relative"}, {"bias": "table"}),
        ({"normalizer": "sparsemax"}, {"normalizer": sparsemax}),
        ({"normalizer": "entmax15"}, {"normalizer": entmax15}),
        ({"scale": 1.0}, {"scale": 1.0}),
        ({"norm": "rms", "d_k": 5}, {"scale": 5**-0.5}),
        ({"causal": False}, {"causal": False}),
    ],
    ids=lambda given: next(iter(given)) if given else "nothing",
)
def test_each_choice_of_the_config_reaches_the_weights(changes, options):
    model = lively(GPT(config(**changes))).eval()
    with headway.trace("blocks.1.attention.*") as steps:
        model(TOKENS)
    if options.get("bias") == "table":
        table = model.blocks[1].attention.position_bias.table
        assert table.shape == (4, 19)
        options = {"bias": relative(table, torch.arange(9), torch.arange(9))}
    queries, keys = (steps[f"blocks.1.attention.{name}"] for name in ("queries", "keys"))
    wanted = headway.attention_weights(queries, keys, **{"causal": True, **options})
    assert torch.allclose(steps["blocks.1.attention.weights"], wanted, atol=1e-6)
    if changes != {"positions": "none"}:
        assert not torch.allclose(
            wanted, headway.attention_weights(queries, keys, causal=True), atol=1e-3
        ) or ("d_k" in changes)


def test_without_positions_a_text_is_a_bag_of_words_to_the_last_token():
    """One layer: what precedes the last token may be shuffled. With positions it may not."""
    shuffled = torch.cat([TOKENS[:, :8].flip(1), TOKENS[:, 8:]], dim=1)
    for positions in POSITIONS:
        norm = "rms" if positions == "rotary" else "layer"
        model = lively(GPT(config(layers=1, positions=positions, norm=norm))).eval()
        same = torch.allclose(model(TOKENS)[:, -1], model(shuffled)[:, -1], atol=1e-5)
        assert same == (positions == "none"), positions


def test_the_leak_sees_later_tokens_with_a_rung_and_without():
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    for attention in (multi_head, of_rung(LADDER["trainable"])):
        model = lively(GPT(config(causal=False), attention)).eval()
        assert not torch.allclose(model(TOKENS)[:, :5], model(changed)[:, :5], atol=1e-3)


def test_masks_from_outside_padding_and_documents():
    model = lively(GPT(config())).eval()
    alone = model(TOKENS[:1, :4])
    padded = model(TOKENS, Spec(padding(torch.tensor([4, 9]))))
    assert torch.allclose(padded[:1, :4], alone, atol=1e-5)
    ids = torch.tensor([[0] * 4 + [1] * 5] * 2)
    changed = TOKENS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    one, other = (model(t, Spec(documents(ids))) for t in (TOKENS, changed))
    assert torch.equal(one[:, 4:], other[:, 4:])
    assert not torch.equal(one[:, :4], other[:, :4])


def test_dropout_is_by_seed_everywhere_and_off_in_eval():
    model = lively(GPT(config(dropout=0.3)))
    one, other = Spec(seed=(1, 2)), Spec(seed=(1, 3))
    assert torch.equal(model(TOKENS, one), model(TOKENS, one))
    assert not torch.equal(model(TOKENS, one), model(TOKENS, other))
    with pytest.raises(ValueError, match="needs a seed"):
        model(TOKENS)
    with headway.trace() as steps:
        model(TOKENS, Spec(seed=1))
    dropped = [steps[f"blocks.{i}.attention.dropped"] == 0 for i in range(2)]
    assert not torch.equal(*dropped), "both layers dropped the same cells"
    assert ((steps["embedded"] == 0).float().mean() - 0.3).abs() < 0.1
    model.eval()
    assert torch.equal(model(TOKENS), model(TOKENS, one))


@pytest.mark.parametrize("preset", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_traced_equals_untraced_bit_for_bit_on_the_plain_kernel(preset):
    attend = partial(dispatch.run, kernel="plain")
    model = lively(GPT(config(**preset), lambda c: multi_head(c, attend))).eval()
    with headway.trace() as steps:
        traced = model(TOKENS)
    assert torch.equal(traced, model(TOKENS))
    assert steps["blocks.1.attention.weights"].shape == (2, 4, 9, 9)
    assert steps["logits"] is traced


def test_only_the_layers_that_are_asked_for_leave_their_kernel():
    model = lively(GPT(config())).eval()
    with headway.trace(only="blocks.1.attention.weights") as steps:
        model(TOKENS)
    assert list(steps) == ["blocks.1.attention.weights"]
    with headway.trace(only=["blocks.0.attention.context", "blocks.0.attention.output"]) as steps:
        model(TOKENS)
    assert len(steps) == 2


def test_an_edit_of_one_head_changes_the_logits():
    model = lively(GPT(config())).eval()

    def off(context):
        return torch.cat([context[:, :1] * 0, context[:, 1:]], dim=1)

    with headway.edit({"blocks.0.attention.context": off}):
        edited = model(TOKENS)
    assert not torch.allclose(edited, model(TOKENS), atol=1e-3)


def test_decoding_while_tracing_gets_a_step_for_each_token():
    model = lively(GPT(config())).eval()
    caches = model.caches()
    with headway.trace(only="blocks.0.attention.weights") as steps:
        for piece in TOKENS.split(1, dim=1):
            model(piece, caches=caches)
    weights = steps["blocks.0.attention.weights"]
    assert [w.shape for w in weights] == [(2, 4, 1, n) for n in range(1, 10)]


def test_too_many_tokens_are_refused():
    model = GPT(config())
    with pytest.raises(ValueError, match="11 tokens do not fit a context of 10"):
        model(torch.zeros(1, 11, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, r"heads must divide the width \(got 5 and 24\)"),
        ({"kv_heads": 3}, r"kv_heads must divide heads \(got 3 and 4\)"),
        ({"heads": 8, "positions": "rotary"}, r"an even width of a head \(got 3\)"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"layers": 0}, r"layers must be at least 1 \(got 0\)"),
        ({"mlp": "swish"}, "one of gelu, gelu-exact"),
        ({"norm": "batch"}, "one of layer, rms"),
        ({"positions": "polar"}, "one of learned, none, sinusoidal, rotary, alibi, relative"),
        ({"normalizer": "hardmax"}, "one of softmax, sparsemax, entmax15"),
        ({"d_k": 0}, r"d_k must be at least 1 \(got 0\)"),
        ({"d_mlp": 0}, r"width must be at least 1 \(got 0\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
