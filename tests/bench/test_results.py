"""What people and programs get to see of a run."""

import io
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from headway.bench import machine, output
from headway.bench.compare import Row, Table
from headway.bench.plots import plots, sweep
from headway.bench.results import Results, remarks, terminal
from headway.bench.settings import Setting

SETTING = Setting(batch=2, tokens=64, heads=3, kv_heads=3, head_dim=8)


def measured(name, seconds, against, **values):
    return Row(
        name,
        "right",
        seconds=seconds,
        against=against,
        **{"ran": "2 bmm", "memory": 3_000_000, "error": 2e-7, **values},
    )


def table(tokens=64, **options):
    factor = tokens / 64
    plain = [0.010 * factor**2, 0.012 * factor**2, 0.011 * factor**2]
    rows = [
        measured("plain", plain, plain, memory=int(4e6 * factor**2)),
        measured(
            "<fast>", [0.005 * factor] * 3, plain, ran="flash (CPU)", memory=int(2e6 * factor)
        ),
        measured("fast (JAX)", [0.006 * factor] * 3, plain, compiling=1.25, ran="XLA: 6 dot"),
        Row("leaky", "wrong", "attends to the future", error=0.5, ran="math"),
        Row("broken", "failed", "raised ValueError: no"),
        Row("large", "skipped", "would need about 34.0 GB, 20.0 GB are free"),
        Row("late"),
    ]
    left_out = {"a": "takes PyTorch tensors only", "b": "takes PyTorch tensors only"}
    return Table(
        replace(SETTING, tokens=tokens, **options),
        rows,
        left_out,
        plain_error=1e-7,
        noise=[0.9, 1.1],
    )


def report(*tables):
    return Results(
        {"processor": "A <processor>", "cores": 4, "threads": 2, "date": "2026-01-01"},
        seconds=2.0,
        bandwidth=1e10,
        peaks={"float32": 1e11},
        tables=[*tables],
    )


def test_json_comes_back_as_it_was_and_says_all(tmp_path):
    made = report(table(), Table(SETTING, skipped="too large"))
    output.write(made, tmp_path)
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result == made.as_dict()
    assert result["machine"]["processor"] == "A <processor>"
    first, second = result["tables"]
    assert second["skipped"] == "too large"
    rows = {row["name"]: row for row in first["rows"]}
    assert [row["name"] for row in first["rows"]][:3] == ["<fast>", "fast (JAX)", "plain"]
    assert first["rows"][-1]["name"] == "leaky"
    fast = rows["<fast>"]
    assert (fast["rank"], fast["median"], fast["speed"]) == (1, 0.005, pytest.approx(2.2))
    assert fast["of_peak"] == pytest.approx(SETTING.flops / 0.005 / 1e11)
    assert fast["of_bandwidth"] == pytest.approx(SETTING.bytes / 0.005 / 1e10)
    assert fast["error_of_plain"] == pytest.approx(2)
    assert rows["plain"]["spread"] == pytest.approx(0.0005 / 0.011)
    leaky = rows["leaky"]
    assert (leaky["rank"], leaky["speed"], leaky["verdict"]) == (None, None, "wrong")
    assert rows["late"]["verdict"] == "waiting"
    assert first["setting"]["tokens"] == 64
    assert first["flops"] == SETTING.flops


def test_remarks_say_what_is_in_no_column():
    message = [f"{kind}: {text}" for kind, text in remarks(table())]
    assert message == [
        "wrong: leaky: attends to the future (error 5.0e-01)",
        "failed: broken: raised ValueError: no",
        "skipped: large: would need about 34.0 GB, 20.0 GB are free",
        "left out: a, b: takes PyTorch tensors only",
        ": noise: plain is 0.95 to 1.05× itself; JAX is always compiled (jit)",
    ]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_row_is_a_line_however_narrow_the_terminal(width):
    made = table()
    made.rows[0].ran = "compiled: 2 bmm + 4 mm + 12 fused and what else there may be"
    made.rows[1].seconds = [1.2346] * 3
    made.rows[0].memory = 123_456_789_012
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(terminal(report(made), made, width, doing="plain"))
    text = console.file.getvalue()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert max(map(len, lines)) <= width
    for name in ("plain", "<fast>", "fast (JAX)", "leaky", "late"):
        (line,) = (x for x in lines if re.match(rf"\d? ?{re.escape(name)} ", x.strip() + " "))
        assert "…" not in line
    (plain,) = (x for x in lines if x.startswith("2 plain") or x.startswith("3 plain"))
    assert "1,235" in next(x for x in lines if "<fast>" in x)
    assert "compiled: 2 " in plain
    assert "measuring: plain" in lines
    (leaky,) = (x for x in text.splitlines() if "leaky" in x and "wrong" not in x)
    assert "\x1b[1;31m" in leaky  # bold red
    assert "×" not in leaky.replace("5,000,000×", "")  # no speed


def test_plots_are_of_the_sweep_alone():
    alone = [table(), table(128, dtype="bfloat16")]
    assert sweep(alone) == []
    assert [*plots(report(*alone))] == []
    both = [table(512, window=3), table(), table(128)]
    assert [item.setting.tokens for item in sweep(both)] == [64, 128]


def test_plots_show_every_right_side_and_the_slopes(tmp_path):
    output.write(report(*(table(tokens) for tokens in (64, 128, 256, 512))), tmp_path)
    for name in ("time", "memory"):
        pixels = image.imread(tmp_path / f"{name}.png")
        assert pixels.shape[0] > 500
        assert len(np.unique((pixels[..., :3] * 255).astype(int).reshape(-1, 3), axis=0)) > 50
        svg = ElementTree.parse(tmp_path / f"{name}.svg")
        texts = {item.text for item in svg.iter("{http://www.w3.org/2000/svg}text")}
        assert {"plain", "<fast>", "fast (JAX)", "O(T)", "O(T²)", "tokens", "128"} <= texts
        assert "leaky" not in texts


def test_the_page_needs_nothing_else_and_shows_what_is_wrong(tmp_path):
    output.write(report(table(), table(128), Table(SETTING, skipped="too <large>")), tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert text.count("<svg") == 2
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    links = re.findall(r"https?://[^\"'<> ]+", text)
    assert {item.split("/")[2] for item in links} == {"www.w3.org"}  # names, not addresses
    assert "<tr class=wrong><td></td><td>leaky</td>" in text
    assert "<fast>" not in text
    assert "&lt;fast&gt;" in text
    assert "A &lt;processor&gt;" in text
    assert "too &lt;large&gt;" in text
    assert "left out: a, b: takes PyTorch tensors only" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))  # two pictures in one page


def test_results_are_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [output.free_folder(None) for _ in range(2)]
    assert len(set(folders)) == 2
    assert all(folder.parent.name == "bench" and folder.is_dir() for folder in folders)
    named = tmp_path / "a" / "b"
    output.write(report(table()), output.free_folder(named))
    with pytest.raises(ValueError, match="choose another folder"):
        output.free_folder(named)


def test_the_machine_is_described():
    result = machine.machine()
    assert {"processor", "cores", "threads", "os", "torch", "python", "headway", "date"} <= set(
        result
    )
    assert result["memory"] > 1e8
    json.dumps(result)
