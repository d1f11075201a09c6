"""The chapters: their form, their directives, and what was measured."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from headway.learn import guide, measured, page
from headway.learn.exercise import exercises

HEADINGS = [
    *("The picture", "The formula", "The code", "Break it", "What was measured", "Your turn")
]
CHAPTERS = guide.chapters()
DOCS = Path(__file__).parents[2] / "docs" / "lab"
SCALED, UNSCALED = "d_k 96, rate 1e-2, scaled", "d_k 96, rate 1e-2, unscaled"


def html(text):
    return guide.rendered(f"# Why?\n\n{text}", "why")[1]


def block(word, body):
    return f"```{word}\n{body}\n```\n"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_a_chapter_is_a_question_with_six_sections(chapter):
    assert chapter.title.endswith("?")
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", chapter.html)
    assert headings == HEADINGS or chapter.name == "bugs"
    assert f'<h1 id="{chapter.name}">' in chapter.html
    assert f'data-exercise="{chapter.name}"' in chapter.html or chapter.name == "bugs"
    assert 'class="live"' in chapter.html
    assert "consequence" in chapter.html


def test_each_exercise_is_in_one_chapter():
    boxes = re.findall(r'data-exercise="([\w-]+)"', "".join(c.html for c in CHAPTERS))
    assert len({*boxes}) == len(boxes)
    assert {*boxes} == {*exercises()}


class Tags(HTMLParser):
    """Checks that elements are closed, and collects attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ("meta", "link", "br", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes


def test_the_page_is_well_formed_and_its_policy_does_not_block_it():
    tags = Tags()
    tags.feed(page.page())
    assert tags.open == []
    names = {name for name, _ in tags.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"style"}
    identifiers = [value for name, value in tags.attributes if name == "id"]
    assert len({*identifiers}) == len(identifiers)
    links = {value for name, value in tags.attributes if name == "href"}
    assert {link[1:] for link in links if link.startswith("#")} <= {*identifiers}


def test_text_is_not_html():
    assert "<script>" not in html("<script>alert(1)</script> and `<b>`")
    assert "<strong>bold</strong>" in html("**bold**")
    assert '<td class="right">' in html("| a | b |\n|--|--:|\n| 1 | 2 |")


def test_a_figure_has_its_options_its_caption_and_its_consequence():
    body = 'kind = "steps"\nsteps = ["x"]\ncaption = "*six* words"\nwithout = "the `mask`"\n'
    drawn = html(block("figure", body + 'consequence = "A <leak>."'))
    options = re.search('data-figure="([^"]*)"', drawn)[1].replace("&quot;", '"')
    assert json.loads(options.replace("&lt;", "<").replace("&gt;", ">"))["steps"] == ["x"]
    assert "<figcaption><em>six</em> words</figcaption>" in drawn
    assert "<strong>Without the <code>mask</code>:</strong> A &lt;leak&gt;." in drawn


def test_the_source_is_the_code_that_runs():
    drawn = html(block("source", 'file = "ladder/causal.py"\nname = "apply"'))
    text = re.sub("<[^>]+>", "", drawn)
    assert "def apply(" in text
    line = int(re.search(r"headway/ladder/causal.py, line (\d+)", text)[1])
    lines = (guide.PACKAGE / "ladder/causal.py").read_text().splitlines()
    assert lines[line - 1].startswith("def apply(")


def test_the_source_of_a_method():
    drawn = html(block("source", 'file = "torch/gpt.py"\nname = "Block.forward"'))
    text = re.sub("<[^>]+>", "", drawn)
    assert "\ndef forward(self, x: Stream" in text  # not indented
    assert "class Block" not in text
    line = int(re.search(r"headway/torch/gpt.py, line (\d+)", text)[1])
    lines = (guide.PACKAGE / "torch/gpt.py").read_text().splitlines()
    assert lines[line - 1].startswith("    def forward(self, x: Stream")


def test_a_chapter_can_be_given_to_a_site_generator():
    """Only fenced blocks with one word are not CommonMark."""
    words = {*guide.DIRECTIVES, "equation", "python", "text", "console"}
    for file in guide.CHAPTERS.glob("*.md"):
        fences = re.findall(r"^```(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert {*fences[::2]} <= words, file.name
        assert {*fences[1::2]} <= {""}, file.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (block("figure", 'caption = "x"'), "kind"),
        (block("figure", 'kind = "steps"\nwithout = "it"'), "consequence"),
        (block("figure", "kind ="), "TOML"),
        (
            block("source", 'file = "ladder/causal.py"\nname = "aply"'),
            "no function, class or method 'aply'",
        ),
        (
            block("source", 'file = "torch/gpt.py"\nname = "Block.forwards"'),
            "no function, class or method 'Block.forwards'",
        ),
        (block("source", 'file = "ladder/causal.py"'), "`source` must have 'name'"),
        (block("measured", 'report = "nothing"'), "known: climb"),
        (block("measured", 'report = "scale"\nvariants = ["x"]'), "unknown variant 'x'"),
        (block("measured", 'report = "scale"\nlabels = ["x"]'), "8 variants must have as many"),
        (block("measured", 'report = "scale"\nwhat = "x"'), "unknown curve 'x'"),
        (block("measured", 'report = "scale"\nsentences = ["x"]'), "no sentence that begins 'x'"),
        (block("exercise", 'name = "sofmax"'), "softmax"),
    ],
)
def test_errors_of_writers_are_told(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        html(text)


def test_what_was_measured_is_what_the_reports_say():
    reports = {file.parent.name: file for file in DOCS.glob("*/report.json")}
    assert {file.stem for file in measured.FOLDER.iterdir()} == {*reports}
    for name, file in reports.items():
        report = json.loads(file.read_text(encoding="utf-8"))
        assert measured.extracted(report) == measured.report(name), (
            f"{name}: run python -m headway.learn.measured"
        )


def test_measured_curves_are_those_of_the_report_with_its_sentence():
    drawn = measured.drawn({"report": "scale", "variants": [SCALED, UNSCALED]})
    report = json.loads((DOCS / "scale" / "report.json").read_text(encoding="utf-8"))
    (sentence,) = (a for a in report["answers"] if a.startswith(UNSCALED))
    conclusion, size = sentence.split(": ")[1].split(" (")[0].split(" by ")
    assert conclusion == "worse"
    size = size.removesuffix(" nats per token")
    words = f"With <em>unscaled</em> the loss is higher by {size} than with <em>scaled</em>"
    assert f"<li>{words} (5 seeds, confirmed by 5 others).</li>" in drawn
    numbers = drawn[drawn.index("<details>") : drawn.index("</details>")]
    low, high = re.search(r"interval \+([\d.]+) to \+([\d.]+)", sentence).groups()
    assert f"higher by {size} nats per token (95% interval {low} to {high}, 5 seeds)" in numbers
    assert len(re.findall('<path d="M[^"]+" stroke', drawn)) == 10  # five seeds each
    (scaled,) = (v for v in report["variants"] if v["name"] == SCALED)
    assert f">{scaled['loss']:#.3g}</tspan>" in drawn
    assert "(d_k 96, rate 1e-2)" in drawn
    assert ">scaled<" in drawn
    assert "512 tokens of shakespeare" in drawn


def test_only_comparisons_of_chosen_variants_are_shown():
    effects = [{"variant": new, "against": old} for new, old in ("ab", "ac", "cd")]
    extract = {"effects": effects, "remarks": []}
    assert measured._sentences(extract, {"report": "x"}, ["a", "b"])[0] == effects[:1]
    with pytest.raises(ValueError, match="does not compare b with d"):
        measured._sentences(extract, {"report": "x"}, ["b", "d"])


def test_a_smaller_loss_is_lower():
    points = measured.report("scale")["variants"][SCALED]["validation"]["0"]
    assert points[0][1] > points[-1][1]
    drawn = measured.drawn({"report": "scale", "variants": [SCALED], "sentences": []})
    path = re.search('<path d="M([^"]+)" stroke', drawn)[1].split("L")
    first, *_, last = (float(point.split()[1]) for point in path)
    assert first < last  # from the top
    marks = re.findall(r'y="([\d.]+)%"[^>]*>([\d.]+)</text>', drawn)
    numbers = [float(number) for _, number in sorted(marks[:4], key=lambda mark: float(mark[0]))]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (
            "better",
            "With <em>A</em> the loss is lower by 0.024 than with <em>&lt;b&gt;</em> (3 seeds)",
        ),
        ("tendency", "than with <em>&lt;b&gt;</em> (a tendency in 3 seeds)"),
        (
            "undecided",
            "Between <em>A</em> and <em>&lt;b&gt;</em> there is no clear difference (3 seeds)",
        ),
    ],
)
def test_a_conclusion_in_plain_words(claim, words):
    effect = {"variant": "a", "against": "<b>", "claim": claim, "mean": -0.024}
    effect |= {"seeds": 3, "others": 0, "confirmed": False}
    assert words in measured._plain(effect, {"a": "A"})


def test_a_sign_does_not_contradict_the_words():
    sentence = "x compared with y: better by 0.024 nats per token (95% interval -0.037 to -0.011)"
    assert measured._unsigned(sentence).endswith(
        "lower by 0.024 nats per token (95% interval 0.011 to 0.037)"
    )
    undecided = "x compared with y: undecided (95% interval -0.016 to +0.013, 5 seeds)"
    assert measured._unsigned(undecided) == undecided


def test_labels_are_used_in_the_picture_and_in_the_sentence():
    labels = ["with <it>", "without"]
    drawn = measured.drawn({"report": "scale", "variants": [SCALED, UNSCALED], "labels": labels})
    assert "With <em>without</em> the loss is higher by" in drawn
    assert ">with &lt;it&gt;</tspan>" in drawn
    assert "(d_k 96, rate 1e-2)" not in drawn


def test_many_seeds_are_a_mean_and_a_band_and_no_curve_is_cut_off():
    drawn = measured.drawn({"report": "position", "sentences": []})
    many = len(measured.report("position")["variants"])
    assert drawn.count('class="band"') == many
    paths = re.findall('<path d="M([^"]+)" stroke', drawn)
    assert len(paths) == many
    heights = [float(point.split()[1]) for path in paths for point in path.split("L")]
    assert 0 <= min(heights) < max(heights) <= 1


@pytest.mark.parametrize("name", sorted(file.stem for file in measured.FOLDER.iterdir()))
@pytest.mark.parametrize("what", [*measured.LABELS, "none"])
def test_every_report_can_be_drawn(name, what):
    report = measured.report(name)
    variants = [n for n, curves in report["variants"].items() if what == "none" or what in curves]
    beginnings = [sentence["sentence"] for sentence in report["effects"]] + report["remarks"]
    if not variants:
        pytest.skip("not recorded")
    drawn = measured.drawn(
        {"report": name, "variants": variants, "what": what, "sentences": beginnings}
    )
    assert drawn.count("<li>") >= len(beginnings)
    labels = re.search(r'<svg class="labels" height="(\d+)">.*?</svg>', drawn)
    texts = re.findall(r'y="([\d.]+)%"[^>]*>(.*?)</text>', labels[0]) if labels else []
    half = 50 * measured.LINE / int(labels[1]) if labels else 0
    areas = sorted(
        (float(y) - half * text.count("<tspan"), float(y) + half * text.count("<tspan"))
        for y, text in texts
    )
    assert all(end <= start + 0.1 for (_, end), (start, _) in pairwise(areas))
    assert all(0 <= start < end <= 100 for start, end in areas)
    axis = re.search(r'<svg class="levels".*?</svg>', drawn)
    assert axis is None or 2 <= axis[0].count("<text") <= 8


def test_one_file_needs_nothing_else():
    whole = page.file()
    loaded = re.sub(r'<a href="https://[^"]*">', "", whole)  # a link loads nothing
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', loaded)
    imports = json.loads(re.search(r'<script type="importmap"[^>]*>(.*?)</script>', whole)[1])
    assert {"learn/main.js", "explore/matrix.js"} <= {*imports["imports"]}
    assert "script-src 'nonce-" in whole
