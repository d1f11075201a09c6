"""The reports in docs/lab follow the rule of `effects`, and so do the sentences that quote them."""

import json
import re
from html import escape
from pathlib import Path

import pytest

from headway.lab.effects import CLAIMS, ENOUGH, Effect
from headway.ladder.why import WHY

LAB = Path(__file__).parents[2] / "docs" / "lab"
REPORTS = [file.parent for file in sorted(LAB.glob("*/report.md"))]
RECORDED = [file.parent for file in sorted(LAB.glob("*/report.json")) if file.parent.name != "race"]


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_the_sentences_are_those_of_the_differences(folder):
    report = json.loads((folder / "report.json").read_text())
    text, page = (folder / "report.md").read_text(), (folder / "index.html").read_text()
    parts = [report, *filter(None, [report["replication"]])]
    for effect in (effect for part in parts for effect in part["effects"]):
        differences = {int(seed): value for seed, value in effect["differences"].items()}
        same = Effect(effect["variant"], effect["against"], differences, len(differences))
        assert (same.claim, same.result) == (effect["claim"], effect["result"])
        assert same.result in text
        assert escape(same.result) in page


@pytest.mark.parametrize("folder", REPORTS, ids=lambda folder: folder.name)
def test_a_claim_has_an_interval_and_was_checked_with_other_seeds(folder):
    lines = re.findall(r"^- .* compared with .*$", (folder / "report.md").read_text(), re.M)
    assert lines
    for line in lines:
        if re.search(rf": ({'|'.join(CLAIMS)})\b", line):
            assert "interval" in line, line
            assert re.search(r"seeds\); (not )?confirmed by other seeds: ", line), line


def test_few_seeds_are_called_a_tendency():
    for name, why in WHY.items():
        for seeds in re.findall(r"(\d+) seeds", why.measured):
            if int(seeds) < ENOUGH:
                assert not re.search("better|worse", why.measured), name
