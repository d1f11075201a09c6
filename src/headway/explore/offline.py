"""A page with its styles and scripts in one HTML file, without a server or a network."""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path


def inlined(page: str, static: Sequence[Path], opening: str, secret: bytes, more: str = "") -> str:
    """Return a page with the style sheets that it links to, and with its script.

    page: it has a link to each style sheet, and its script is the last element of the head.
    static: the folders `PACKAGE/static` of style sheets and scripts. opening: the first script,
    which imports the others as "PACKAGE/NAME". secret: what an injected script cannot know; the
    nonce is made of it. more: elements for the head.
    """
    nonce = sha256(secret).hexdigest()[:32]
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    imports = {
        f"{folder.parent.name}/{file.name}": _data(file)
        for folder in static
        for file in sorted(folder.glob("*.js"))
    }
    styles = {file.name: file for folder in static for file in folder.glob("*.css")}
    scripts = (
        f'<script type="importmap" nonce="{nonce}">{json.dumps({"imports": imports})}</script>\n'
        f'<script type="module" nonce="{nonce}">{opening}</script>\n'
    )

    def style(link: re.Match[str]) -> str:
        text = styles[link[1]].read_text(encoding="utf-8")
        return f'<style nonce="{nonce}">\n{text}</style>'

    charset = '<meta charset="utf-8">'
    limits = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = page.replace(charset, f"{charset}\n{limits}", 1)
    page = re.sub(r'<link rel="stylesheet" href="[^"]*?([a-z]+\.css)">', style, page)
    before, after = re.split(r'<script type="module" src="[^"]+"></script>\n', page)
    return "".join((before, scripts, more, after))


def _data(file: Path) -> str:
    """Return a module as a data URL, in which `./x.js` is undefined, so imports get bare names."""
    script = file.read_text(encoding="utf-8")
    text = re.sub(
        r'(from |import\()"(?:\./|\.\./\.\./([a-z]+)/static/)([a-z]+\.js)"',
        lambda found: f'{found[1]}"{found[2] or file.parents[1].name}/{found[3]}"',
        script,
    )
    return "data:text/javascript;base64," + b64encode(text.encode()).decode()
