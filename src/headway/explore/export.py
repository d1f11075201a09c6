"""The page and a trace in one HTML file, which needs no server and no network."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.resources import files

import numpy as np
from safetensors.numpy import save

from headway.explore.trace_file import Manifest, Tensors
from headway.tracing import INSIDE

AIM = 24 * 2**20  # bytes of tensors above which what can be spared is left out
MOST = 160 * 2**20  # bytes of tensors that a browser opens at once; no file has more
PIECE = 3 * 2**20  # bytes in one script element: a multiple of 3, so base64 pieces are whole
LOGITS = 4 * 2**20  # bytes of logits that stay in a large file: those of the last positions

STATIC = files("headway.explore") / "static"


def page(tensors: Mapping[str, np.ndarray], manifest: Manifest, address: str = "") -> str:
    """One HTML file.

    tensors, manifest: what a `Subject` gives. address: where it opens, the page's own after the #.
    Raises ValueError, with advice, when it would be too large.
    """
    kept, manifest = spared(tensors, manifest)
    size = _size(kept)
    if size > MOST:
        raise ValueError(
            f"the file would hold {size / 1e6:,.0f} MB of tensors, more than the "
            f"{MOST / 1e6:,.0f} MB that a browser opens at once: give a shorter text, or leave "
            "--html out and look at it live"
        )
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in kept.items()}
    raw = save(whole, metadata={"headway": json.dumps(manifest, sort_keys=True)})
    # Whoever could add a script to this file would have to know the nonce, that is, the file.
    nonce = sha256(raw).hexdigest()[:32]
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    imports = {_bare(name): _data(text) for name, text in _scripts()}
    shell = (STATIC / "index.html").read_text(encoding="utf-8")
    head, body = shell.split('<link rel="stylesheet"')[0], shell[shell.index("<body>") :]
    charset = '<meta charset="utf-8">'
    limits = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    parts = [
        head.replace(charset, f"{charset}\n{limits}"),
        f'<style nonce="{nonce}">\n{style}</style>\n',
        f'<script type="importmap" nonce="{nonce}">{json.dumps({"imports": imports})}</script>\n',
        f'<script type="module" nonce="{nonce}">{_opening(address)}</script>\n',
        *_pieces(raw),  # in the head: a body that grows would be laid out again and again
        f"</head>\n{body}",
    ]
    return "".join(parts)


def spared(tensors: Mapping[str, np.ndarray], manifest: Manifest) -> tuple[Tensors, Manifest]:
    """What goes into a file: all of it or, of much, what the page cannot do without.

    First go the logits of all but the last positions, then what can be recomputed from queries
    and keys, then the residual stream and what is made on the way; the manifest says so.
    """
    kept, left = dict(tensors), []
    facts = {name: each for name, each in manifest["attentions"].items() if each["recomputable"]}
    inside = {f"{layer}.{step}".lstrip(".") for layer in facts for step in (*INSIDE, "context")}
    asked = re.compile(r"(.*\.)?(queries|keys|values|weights|context|overview|allowed|bias)|inputs")
    stream = {name for name in kept if not asked.fullmatch(name) and name != "logits"}
    stream -= {name for name in stream if name.startswith("ladder.")}
    if _size(kept) > AIM and "logits" in kept:
        most = max(1, LOGITS // kept["logits"][0, 0].nbytes)
        kept["logits"] = kept["logits"][:, -most:]
    for group in (inside, stream):
        if _size(kept) > AIM:
            gone = sorted(group & kept.keys())
            left += gone
            kept = {name: tensor for name, tensor in kept.items() if name not in gone}
    return kept, {**manifest, "left_out": left}


def _size(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _scripts() -> Iterator[tuple[str, str]]:
    for file in sorted(STATIC.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".js"):
            yield file.name, file.read_text(encoding="utf-8")


def _bare(name: str) -> str:
    return f"headway/{name}"


def _data(script: str) -> str:
    """A module as an address; within, `./x.js` has no meaning, so its imports get bare names."""
    text = re.sub(r'from "\./([a-z]+\.js)"', lambda found: f'from "{_bare(found[1])}"', script)
    return "data:text/javascript;base64," + b64encode(text.encode()).decode()


def _opening(address: str) -> str:
    """Where the page opens, unless its address says another place."""
    there = json.dumps(address.removeprefix("#")).replace("<", "\\u003c")
    return f"if (!location.hash) location.hash = {there};\nimport({json.dumps(_bare('main.js'))});"


def _pieces(raw: bytes) -> Iterator[str]:
    for start in range(0, len(raw), PIECE):
        text = b64encode(raw[start : start + PIECE]).decode()
        yield f'<script type="application/octet-stream" data-bytes="{PIECE}">{text}</script>\n'
