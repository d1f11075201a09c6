"""The climb's last rungs: multi-head attention's own numbers, packed otherwise."""

import re

import numpy as np
import pytest

from headway.bench import measure
from headway.lab import climb, work
from headway.lab.experiments import Experiment
from headway.ladder import fused

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("climb")

TEXT = "It was the best of times, it was the worst of times.\n" * 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A climb of which only multi-head attention was trained, for two steps."""
    place = tmp_path_factory.mktemp("climb")
    (place / "text.txt").write_text(TEXT * 2)
    complete = climb.experiment(str(place / "text.txt"), "quick")
    multihead = complete.variants[climb.RUNGS.index("multihead")]
    multihead.settings["training"] |= {"steps": 2, "batch": 2, "evaluation_windows": 2}
    experiment = Experiment("climb", "?", [multihead], 1)
    assert work.run(experiment.jobs, place) == {}
    return experiment, place


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(climb, "LAYERS", ((2, 8),))
    monkeypatch.setattr(measure, "MOST", 3)


def test_fused_and_tiled_give_the_same_logits_and_their_times(trained):
    message, *same, times = climb.repacked(*trained)
    assert message == climb.DROPPED
    assert [item.split(":")[0] for item in same] == ["fused", "tiled"]
    for item in same:
        difference, largest = map(
            float, re.findall(r"within (\S+) \(the largest logit is (\S+)\)", item)[0]
        )
        assert difference < 1e-5 * max(1.0, largest)
        assert largest > 0.01, "the logits of an untrained head would all be alike"
    assert re.search(
        r"2 × 8 tokens.* fused takes \d+\.\d\d times .* tiled takes \d+\.\d\d times", times
    )


def test_numbers_packed_wrongly_are_seen(trained, monkeypatch):
    right = fused.from_multihead

    def wrong(parameters):
        result = dict(right(parameters))
        result["W_qkv"] = np.roll(result["W_qkv"], 1, axis=1)
        return result

    monkeypatch.setattr(fused, "from_multihead", wrong)
    _, first, *_ = climb.repacked(*trained)
    (difference,) = map(float, re.findall(r"within (\S+) ", first))
    assert difference > 1e-4


def test_nothing_is_said_of_what_has_not_ended(trained, tmp_path):
    experiment, _ = trained
    folder = tmp_path / experiment.jobs[0].folder
    folder.mkdir()
    (folder / work.FAILED).write_text("{}")
    assert [*climb.repacked(experiment, tmp_path)] == [climb.DROPPED]
