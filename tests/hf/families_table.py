"""Examine every text family of transformers and write the table of docs/models.md (`make docs`)."""

import re
import sys
from pathlib import Path

import torch
import transformers

from headway.hf.families import BOUND, Measurement, examine, families

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MARKS = ("<!-- families: begin -->", "<!-- families: end -->")
ALWAYS = {"queries", "keys", "values", "scores", "scaled", "weights", "context", "embedded"}
ORDER = ("capped", "masked", "output", "after_attention", "after_self_attention")
ORDER += ("after_cross_attention", "mlp.output", "after_mlp", "final_norm", "logits")


def short(steps):
    """The names of steps without layers, in order, except those that every family has."""
    names = {"mlp.output" if ".mlp.output" in step else step.split(".")[-1] for step in steps}
    assert names <= ALWAYS | set(ORDER), names
    return [name for name in ORDER if name in names]


def number(value):
    if value is None:
        return "-"
    return f"{value:.0e}" if value < BOUND else f"**{value:.0e}**"


def table(examined):
    watched = {x: m for x, m in examined.items() if isinstance(m, Measurement)}
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__}: {len(watched)} "
        f"families are watched.",
        "",
        "| family | class | whole text | cached | left-padded | steps |",
        "|---|---|---|---|---|---|",
    ]
    for family, m in watched.items():
        numbers = " | ".join(map(number, (m.complete_text, m.cached, m.padded)))
        steps = ", ".join(short(m.steps))
        lines.append(f"| {family.name} | `{family.model}` | {numbers} | {steps} |")
    reasons = {}
    for family, reason in examined.items():
        if isinstance(reason, str):
            reason = re.sub(r"[|`]", "", reason)
            reason = re.sub(r"has [\d,]+ parameters", "is too large with these sizes", reason)
            reason = reason if len(reason) <= 140 else reason[:137] + "..."
            reasons.setdefault(reason, []).append(family.name)
    lines += ["", "Not watched, or not tried:", "", "| reason | families |", "|---|---|"]
    for reason in sorted(reasons, key=lambda reason: -len(reasons[reason])):
        lines.append(f"| {reason} | {', '.join(reasons[reason])} |")
    return "\n".join(lines)


def main():
    torch.set_num_threads(1)
    examined = {}
    for family in families():
        examined[family] = examine(family)
        print(family.name, file=sys.stderr)
    before, _, after = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = after.partition(MARKS[1])[2]
    text = "\n".join([before + MARKS[0], table(examined), MARKS[1] + after])
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
