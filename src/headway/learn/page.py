"""The page of the guide: all chapters, of which the address selects one."""

import json
from html import escape
from pathlib import Path

from headway.explore.export import STATIC as EXPLORER
from headway.explore.offline import inlined
from headway.ladder.rung import INPUTS, SENTENCE
from headway.ladder.trainable import BOOK
from headway.learn.guide import Chapter, chapters, inline

STATIC = Path(__file__).parent / "static"


def page() -> str:
    """Return the page whose style sheets and scripts are in the folders of the server."""
    every = chapters()
    book = {
        "sentence": SENTENCE,
        "inputs": INPUTS,
        **{name: matrix.tolist() for name, matrix in BOOK.items()},
    }
    parts = {
        "book": json.dumps(book).replace("<", "\\u003c"),
        "contents": "".join(_line(chapter) for chapter in every),
        "chapters": "".join(map(_article, every, [None, *every], [*every[1:], None])),
    }
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    for name, html in parts.items():
        index = index.replace(f"<!-- {name} -->", html)
    return index


def file() -> str:
    """Return the page as one file, which needs neither a server nor a network."""
    whole = page()
    return inlined(whole, [EXPLORER, STATIC], 'import("learn/main.js");', whole.encode())


def _line(chapter: Chapter) -> str:
    return (
        f'<li data-chapter="{chapter.name}"><a href="#{chapter.name}">'
        f"<span>{chapter.number}</span> <span>{inline(chapter.title)}</span> "
        '<span class="mark"></span></a></li>\n'
    )


def _article(chapter: Chapter, before: Chapter | None, after: Chapter | None) -> str:
    links = "".join(
        f'<a class="{rel}" rel="{rel}" href="#{other.name}"><small>{label}</small> '
        f"{inline(other.title)}</a>\n"
        for rel, label, other in (("prev", "← Before", before), ("next", "Next →", after))
        if other
    )
    return (
        f'<article data-name="{escape(chapter.name)}" data-number="{chapter.number}">\n'
        f'{chapter.html}<nav class="around" aria-label="chapters">{links}</nav>\n</article>\n'
    )
