"""The chapters of the guide: from Markdown to HTML.

A chapter is CommonMark with tables. What Markdown does not have is a fenced block whose info string
is one word, and whose body is TOML:

    ```figure
    kind = "steps"
    caption = "Six words, and the *weights* between them."
    ```

GitHub shows such a block as code, and the site generators zensical and mkdocs-material, which both
render with Python-Markdown, call a function for it (`custom_fences` of `pymdownx.superfences`). The
options are in the body, because behind the word the generators have a syntax of their own, and
GitHub would not show them.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from headway.learn.exercise import find
from headway.learn.measured import drawn

PACKAGE = Path(__file__).parents[1]
CHAPTERS = Path(__file__).parent / "chapters"
RECORDED = Path(__file__).parent / "recorded"

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Chapter:
    """A chapter. name: also that of its exercise, unless it has several. html: its sections."""

    number: int
    name: str
    title: str
    html: str


def chapters() -> list[Chapter]:
    """Return all chapters in order."""
    return [_chapter(file) for file in sorted(CHAPTERS.glob("*.md"))]


def _chapter(file: Path) -> Chapter:
    number, name = file.stem.split("_", 1)
    try:
        title, html = rendered(file.read_text(encoding="utf-8"), name)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    return Chapter(int(number), name, title, html)


def rendered(text: str, name: str) -> tuple[str, str]:
    """Return the title and the sections of a chapter as HTML. Raises ValueError if not valid."""
    tokens = _MARKDOWN.parse(text)
    if not tokens or tokens[0].tag != "h1":
        raise ValueError("the first line must be the question, as `# ...`")
    starts = [i for i, token in enumerate(tokens) if token.type == "heading_open"]
    starts = [i for i in starts if tokens[i].tag in ("h1", "h2")]
    sections = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        title = tokens[start + 1].content
        identifier = name if start == 0 else f"{name}-{_slug(title)}"
        tokens[start].attrSet("id", identifier)
        body = _MARKDOWN.renderer.render(tokens[start:end], _MARKDOWN.options, {})
        sections.append(f"<section>\n{body}</section>\n")
    return tokens[1].content, "".join(sections)


def _slug(title: str) -> str:
    return "-".join(re.findall(r"\w+", title.lower()))


def inline(text: str) -> str:
    """Return a line of Markdown as HTML."""
    return str(_MARKDOWN.renderInline(text))


def _figure(options: Options) -> str:
    title, caption = options.get("title", ""), options.get("caption", "")
    if "kind" not in options:
        raise ValueError("a figure must have a `kind`")
    if ("without" in options) != ("consequence" in options):
        raise ValueError("a figure with `without` must have a `consequence`, and vice versa")
    without = options.get("without")
    consequence = (
        f'<p class="consequence"><strong>Without {inline(without)}:</strong> '
        f"{inline(options['consequence'])}</p>\n"
        if without
        else ""
    )
    if "recorded" in options:  # numbers of trained models
        recorded = json.loads((RECORDED / f"{options['recorded']}.json").read_bytes())
        options = {**options, "recorded": recorded}
    return (
        f'<figure class="live" data-figure="{escape(json.dumps(options))}">\n'
        f'<div class="head"><h3>{inline(title)}</h3></div>\n'
        '<div class="drawing"><noscript>This figure needs JavaScript.</noscript></div>\n'
        f"{consequence}<figcaption>{inline(caption)}</figcaption>\n</figure>\n"
    )


def _source(options: Options) -> str:
    file, name = options["file"], options["name"]
    text = (PACKAGE / file).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):  # `Block.forward` is a method
        node = next((n for n in node.body if getattr(n, "name", "") == part), None)
        if node is None:
            raise ValueError(f"{file} has no function, class or method {name!r}")
    code = dedent("\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]))
    where = f"headway/{file}, line {node.lineno}"
    return (
        f'<figure class="source">{coloured(code)}'
        f"<figcaption>The code that runs: <code>{escape(where)}</code></figcaption></figure>\n"
    )


def _exercise(options: Options) -> str:
    exercise = find(options["name"])
    name = exercise.name
    return (
        f'<aside class="exercise" id="exercise-{name}" data-exercise="{name}">\n'
        f"<h3><small>Exercise {exercise.number}</small> {inline(exercise.title)}</h3>\n"
        f"{_MARKDOWN.render(exercise.task)}"
        f'<details class="stub" open><summary><code>learn/{exercise.file}</code></summary>\n'
        f"{coloured(exercise.stub)}</details>\n"
        '<div class="state"><p>Start with <code>headway learn</code>, edit this file and save it. '
        "It is graded at each save.</p></div>\n</aside>\n"
    )


def coloured(code: str, language: str = "python") -> str:
    """Return code with its syntax in colours, as `<pre>`."""
    spans = highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    return f'<pre class="code">{spans}</pre>\n'


DIRECTIVES: dict[str, Callable[[Options], str]] = {
    "figure": _figure,
    "source": _source,
    "measured": drawn,
    "exercise": _exercise,
}


def _fence(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    word, body = tokens[at].info.strip(), tokens[at].content
    if word == "equation":  # drawn by the page; the plain text can be read too
        return f'<div class="equation" role="math">{escape(body.strip())}</div>\n'
    if word not in DIRECTIVES:
        return coloured(body, word or "text")
    try:
        return DIRECTIVES[word](tomllib.loads(body))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"a block `{word}` is not TOML: {error}") from error
    except KeyError as error:
        raise ValueError(f"a block `{word}` must have {error}") from error


def _cell(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    # The page allows no `style` attributes, by which markdown-it aligns columns.
    tag = tokens[at].tag
    return f'<{tag} class="right">' if "right" in str(tokens[at].attrGet("style")) else f"<{tag}>"


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_MARKDOWN.add_render_rule("fence", _fence)
for _rule in ("th_open", "td_open"):
    _MARKDOWN.add_render_rule(_rule, _cell)
