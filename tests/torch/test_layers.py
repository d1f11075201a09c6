"""MultiHeadAttention and RungAttention: the rungs as modules, and what production adds."""

from functools import partial

import pytest
import torch

import headway
from headway.attention import dispatch
from headway.attention.masks import causal, padding, window
from headway.attention.positions import Rotary, rotary
from headway.attention.spec import Spec
from headway.ladder.rung import RungConfig
from headway.ladder.rungs import LADDER
from headway.torch import Cache, MultiHeadAttention, RungAttention

plain = partial(dispatch.run, kernel="plain")
X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def test_bit_equal_to_the_rung_when_rotary_and_cache_are_off():
    spec = Spec(causal, dropout=0.2)
    module = MultiHeadAttention(12, heads=3, spec=spec, attend=plain)
    names = {"W_query": "q", "W_key": "k", "W_value": "v", "W_output": "output"}
    parameters = {rung: getattr(module, own).weight.mT for rung, own in names.items()}
    call = Spec(padding(torch.tensor([5, 3])), seed=(4, 2))
    expected = LADDER["multihead"](X, parameters, call._replace(dropout=0.2), heads=3)
    assert torch.equal(module(X, call), expected)


@pytest.mark.parametrize("name", LADDER)
def test_every_rung_is_a_trainable_module(name):
    rung = LADDER[name]
    heads = 4 if rung.has_heads else 1
    module = RungAttention(rung, 12, heads=heads, spec=Spec(causal))
    parameters = dict(module.named_parameters())
    expected = rung(X, parameters, Spec(causal), heads=heads)
    result = module(X.clone().requires_grad_())
    assert torch.equal(result, expected)
    assert result.shape == X.shape
    result.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters.values())
    assert set(parameters) == set(rung.shapes(RungConfig(12, 12, heads)))


@pytest.mark.parametrize("name", LADDER)
def test_no_rung_module_sees_the_future(name):
    heads = 4 if LADDER[name].has_heads else 1
    module = RungAttention(LADDER[name], 12, heads=heads, spec=Spec(causal))
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[:, 2].sum(), x)
    assert (gradient[:, 3:] == 0).all()
    assert (gradient[:, :3].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
def test_any_kernel_can_do_the_work(kernel):
    for name in ("causal", "dropout", "stacked", "multihead", "fused", "tiled"):
        heads = 4 if LADDER[name].has_heads else 1
        own = RungAttention(LADDER[name], 12, heads=heads)
        other = RungAttention(
            LADDER[name], 12, heads=heads, attend=partial(dispatch.run, kernel=kernel)
        )
        other.load_state_dict(own.state_dict())
        assert torch.allclose(own(X), other(X), atol=1e-6)


OPTIONS = {
    "bare": {},
    "with biases": {"linear_bias": True},
    "grouped": {"kv_heads": 2},
    "rotary": {"rotary": Rotary(100.0), "head_dim": 4},
    "all": {
        "rotary": Rotary(100.0),
        "kv_heads": 1,
        "qk_norm": 1e-6,
        "linear_bias": True,
        "head_dim": 6,
    },
    "window": {"spec": Spec(causal & window(2))},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pieces", [[5], [1] * 5, [2, 3], [3, 1, 1]])
def test_cached_equals_whole_however_it_is_cut(options, pieces):
    module = MultiHeadAttention(12, heads=4, **options).double().eval()
    x, cache = X.double(), Cache(9)
    result = torch.cat([module(piece, cache=cache) for piece in x.split(pieces, dim=1)], dim=1)
    assert torch.allclose(result, module(x), rtol=0, atol=1e-12)


def test_the_cache_is_never_copied_and_refuses_more_than_it_holds():
    cache = Cache(4)
    keys, _ = cache.extend(torch.ones(1, 2, 3, 5), torch.ones(1, 2, 3, 5))
    more, _ = cache.extend(torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 5))
    assert more.data_ptr() == keys.data_ptr()
    assert more.shape == (1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"at most 4 tokens \(got 5\)"):
        cache.extend(torch.zeros(1, 2, 1, 5), torch.zeros(1, 2, 1, 5))
    assert cache.length == 4


def test_grouped_heads_share_in_order():
    module = MultiHeadAttention(12, heads=4, kv_heads=2)
    with headway.trace() as steps:
        module(X)
    assert steps["queries"].shape == (2, 4, 5, 3)
    assert steps["keys"].shape == (2, 2, 5, 3)
    scores = steps["queries"][:, 3] @ steps["keys"][:, 1].mT
    assert torch.allclose(steps["scores"][:, 3], scores, atol=1e-6)


def test_rotary_turns_queries_and_keys_before_the_scores():
    bare = MultiHeadAttention(12, heads=2)
    turned = MultiHeadAttention(12, heads=2, rotary=Rotary(50.0))
    turned.load_state_dict(bare.state_dict())
    with headway.trace() as without:
        bare(X)
    with headway.trace() as with_rotary:
        turned(X)
    assert torch.equal(with_rotary["queries"], rotary(without["queries"], torch.arange(5), 50.0))
    assert torch.equal(with_rotary["values"], without["values"])


def test_dropout_only_while_training_and_by_seed():
    module = MultiHeadAttention(12, heads=2, spec=Spec(causal, dropout=0.5))
    one, other = Spec(seed=1), Spec(seed=2)
    assert torch.equal(module(X, one), module(X, one))
    assert not torch.equal(module(X, one), module(X, other))
    half = module(X[1:], Spec(seed=1, batch_offset=1))
    assert torch.allclose(half, module(X, one)[1:], atol=1e-6)
    with pytest.raises(ValueError, match="needs a seed"):
        module(X)
    module.eval()
    assert torch.equal(module(X), module(X, one))


def test_refusals():
    with pytest.raises(ValueError, match="5 heads do not divide"):
        MultiHeadAttention(12, heads=5)
    with pytest.raises(ValueError, match=r"kv_heads must divide heads \(got 3 and 4\)"):
        MultiHeadAttention(12, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="does not support a cache"):
        RungAttention(LADDER["simplified"], 12)(X, cache=Cache(5))
    with pytest.raises(ValueError, match="or a later rung"):
        RungAttention(LADDER["causal"], 12, heads=2)(X)
