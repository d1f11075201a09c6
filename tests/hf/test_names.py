"""Tests of the tables of parameter names; test_equal.py tests them on models of transformers."""

import pytest
import torch

from gpts import config
from headway.hf import names
from headway.torch import GPT


def test_a_parameter_without_equivalent_is_named():
    model = GPT(config(positions="relative"))
    with pytest.raises(
        ValueError, match=r"blocks\.0\.attention\.position_bias\.table' has no equivalent"
    ):
        names.to_hf(names.GPT2.table, model.state_dict())


def test_a_matrix_of_queries_keys_and_values_in_any_order():
    whole = torch.arange(24.0).reshape(2, 12)  # (d_in, 3 d_out)
    ours = {}
    for name in ("v", "q", "k"):
        parameter = f"blocks.7.attention.{name}.weight"
        place = names.location(names.GPT2.table, parameter)
        assert place.name == "transformer.h.7.attn.c_attn.weight"
        assert place.shape((4, 2)) == (2, 12)
        ours[parameter] = place.read(whole)
    assert ours["blocks.7.attention.k.weight"].tolist() == whole[:, 4:8].T.tolist()
    assert torch.equal(
        names.to_hf(names.GPT2.table, ours)["transformer.h.7.attn.c_attn.weight"], whole
    )
