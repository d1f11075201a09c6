"""Plans of whole runs: what fits, what limits, what is suggested, and invalid settings."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from headway.models.gpt import preset
from headway.plan.cards import CARDS, Cluster, card_named, efficiency_of
from headway.plan.counts import parameters
from headway.plan.estimate import LIMITS, USABLE, estimate, model_of, work_of
from headway.plan.memory import memory
from headway.plan.published import gpt2, llama
from headway.training import recipes, speed
from headway.training.settings import TrainingConfig

LLAMA = llama("Llama 3.1 8B", 8192)
EXAMPLES = Path(__file__).parents[2] / "examples"


def plan_of(model, gpus=1, card="h100", network=None, **settings):
    chosen = card_named(card)
    if network is not None:
        chosen = replace(chosen, network=network)
    efficiency = efficiency_of(chosen, compiled=settings.get("compile") is not False)
    return estimate(model, TrainingConfig(**settings), Cluster(chosen, gpus), efficiency)


def test_speed_mfu_and_hours_follow_from_the_time():
    plan = plan_of(gpt2("124M"), gpus=8, batch=512, micro_batch=32, steps=1000)
    tokens = 512 * 1024
    assert plan.speed == pytest.approx(tokens / plan.times.total)
    assert plan.hours == pytest.approx(1000 * plan.times.total / 3600)
    work = tokens * speed.operations(plan.work.model, plan.parameters.total, 1024)
    assert plan.mfu == pytest.approx(work / plan.times.total / (8 * 989.4e12))
    assert plan.work.rows == 32
    assert plan.work.micro_batches == 2
    assert plan.limit in LIMITS.values()


def test_settings_become_work():
    model = gpt2("124M")
    training = TrainingConfig(
        batch=24, micro_batch=5, optimizer="muon", precision="float32", compile=False, length=100
    )
    work = work_of(model, training, 2)
    assert (work.rows, work.micro_batches) == (5, 3)  # 5, 5 and 2 of 12 windows
    assert work.muon
    assert work.itemsize == 4
    assert not work.compiled
    assert work.tokens == 100
    assert work_of(model, TrainingConfig(batch=8, micro_batch=99), 2).rows == 4
    assert work_of(model, TrainingConfig(batch=8), 8).recomputed == 0
    again = TrainingConfig(batch=8, activation_checkpointing=True)
    assert work_of(model, again, 8).recomputed == 1


def test_the_fastest_choice_that_fits_is_suggested():
    plan = plan_of(LLAMA, gpus=8, batch=128, micro_batch=4)
    assert not plan.fits
    (first, *_) = plan.suggestions
    rows = int(first.split()[1])
    checkpointing = "--activation-checkpointing" in first
    again = plan_of(
        LLAMA, gpus=8, batch=128, micro_batch=rows, activation_checkpointing=checkpointing
    )
    assert again.fits
    assert not any("less time" in text for text in again.suggestions)
    for other in (1, 2, 4, 8, 16):
        for choice in (False, True):
            one = plan_of(
                LLAMA, gpus=8, batch=128, micro_batch=other, activation_checkpointing=choice
            )
            assert not one.fits or one.times.total >= again.times.total


def test_a_model_that_is_too_large_needs_more_gpus():
    big = llama("Llama 3 70B", 8192)
    plan = plan_of(big, gpus=8, batch=8, micro_batch=1)
    (text,) = plan.suggestions
    gpus = int(text.split("sharded over ")[1].split()[0])
    least = work_of(big, TrainingConfig(batch=8, micro_batch=1, activation_checkpointing=True), 8)
    usable = USABLE * CARDS["h100"].memory
    assert memory(least, gpus).total <= usable < memory(least, gpus // 2).total
    huge = preset(
        "gpt2",
        {"vocabulary": 10, "context": 8, "width": 2**19, "layers": 1},
        attention={"heads": 1},
    )
    (text,) = plan_of(huge, card="4090", batch=1).suggestions
    assert text.startswith("no number of these cards is enough")


def test_exposed_communication_is_named_and_a_larger_batch_hides_it():
    plan = plan_of(LLAMA, gpus=64, batch=64, card="h100", network=1e9)
    assert plan.limit == LIMITS["exposed"]
    text = plan.suggestions[-1]
    assert "hides more communication" in text
    batch, rows = int(text.split()[1]), int(text.split()[3])
    more = plan_of(
        LLAMA, gpus=64, batch=batch, micro_batch=rows, network=1e9,
        activation_checkpointing="--activation-checkpointing" in text,
    )  # fmt: skip
    assert more.fits
    assert more.times.exposed / more.times.total < plan.times.exposed / plan.times.total


def test_json_has_all_numbers():
    plan = plan_of(gpt2("124M"), batch=16)
    data = plan.to_json()
    assert data["seconds"]["total"] == plan.times.total
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    assert data["memory"]["total"] == sum(data["memory"][part] for part in parts)
    assert data["parameters"]["total"] == 124_475_904
    assert data["tokens_per_step"] == 16 * 1024


@pytest.mark.parametrize("name", sorted({*recipes.names()} - {"finetune"}))
def test_every_recipe_can_be_planned(name):
    model, is_assumed = model_of(recipes.read(name))
    assert is_assumed == (name in ("char-cpu", "shakespeare-char", "lab"))
    assert plan_of(model, **recipes.read(name)["training"]).fits


def test_the_example_is_llama():
    model, is_assumed = model_of(recipes.read(str(EXAMPLES / "llama-8b.toml")))
    assert not is_assumed
    assert parameters(model).total == parameters(LLAMA).total == 8_030_261_248


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 4}, "batch must be at least the number of GPUs"),
        ({"batch": 12}, "batch must be a multiple of gpus (got 12 and 8)"),
        ({"batch": 8, "length": 2000}, "length must be at most the context"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        work_of(gpt2("124M"), TrainingConfig(**settings), 8)


def test_invalid_clusters():
    card = CARDS["h100"]
    for gpus, per_node in ((12, 8), (0, 8), (8, 0)):
        with pytest.raises(ValueError, match="must be"):
            Cluster(card, gpus, per_node)
    assert [Cluster(card, n).nodes for n in (1, 4, 8, 16, 1024)] == [1, 1, 1, 2, 128]
    assert Cluster(card, 6, 4 + 2).nodes == 1
    with pytest.raises(ValueError, match="unknown card 'h20'; did you mean 'h200'"):
        card_named("h20")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "translation", "model": {"width": 8}}, "only a GPT can be planned"),
        ({"rung": "causal", "model": {"width": 8}}, "a rung of the ladder cannot be planned"),
        ({"model": {}}, "the recipe has no"),
        ({"tokenizer": "a.json", "model": {"width": 8}}, "the vocabulary of a.json is unknown"),
    ],
)
def test_recipes_that_cannot_be_planned(settings, message):
    with pytest.raises(ValueError, match=message):
        model_of(settings)
