"""The page and a trace in one HTML file, without a server or a network."""

import json
import re
from base64 import b64encode
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from headway.explore.offline import inlined
from headway.explore.trace_file import Manifest, Tensors, to_bytes
from headway.ladder.why import WHY
from headway.tracing import INSIDE

AIM = 24 * 2**20  # bytes of tensors; with more, those that are not essential are left out
MOST = 160 * 2**20  # the maximum bytes of tensors that a browser opens
PIECE = 3 * 2**20  # bytes per script element; a multiple of 3, so base64 needs no padding
LOGITS = 4 * 2**20  # bytes of logits in a large file, of the last positions

STATIC = Path(__file__).parent / "static"


def page(
    tensors: Mapping[str, np.ndarray],
    manifest: Manifest,
    address: str = "",
    base: tuple[Mapping[str, np.ndarray], Manifest] | None = None,
) -> str:
    """Return the HTML file.

    tensors, manifest: of a `Tracer`. address: the part of the address after #, where it opens.
    base: the trace that it is compared with: of the model before an edit, or of another model.
    Raises ValueError, with advice, if it would be too large.
    """
    traces = [reduced(*trace) for trace in ((tensors, manifest), base) if trace]
    size = sum(_size(kept) for kept, _ in traces)
    if size > MOST:
        raise ValueError(
            f"the file would contain {size / 1e6:,.0f} MB of tensors, and a browser opens at most "
            f"{MOST / 1e6:,.0f} MB: give a shorter text, or remove --html to use the live page"
        )
    files = dict(zip(("trace", "base"), (to_bytes(*trace) for trace in traces), strict=False))
    # The page opens at this address, unless it has another one already.
    target = json.dumps(address.removeprefix("#")).replace("<", "\\u003c")
    opening = f'if (!location.hash) location.hash = {target};\nimport("explore/main.js");'
    pieces = [
        (name, b64encode(raw[start : start + PIECE]).decode())
        for name, raw in files.items()
        for start in range(0, len(raw), PIECE)
    ]
    # In the head, because a growing body would be laid out repeatedly.
    data = "".join(
        f'<script type="application/octet-stream" data-of="{name}" data-bytes="{PIECE}">'
        f"{piece}</script>\n"
        for name, piece in pieces
    )
    # An injected script would have to know the complete trace.
    return inlined(shell(), [STATIC], opening, b"".join(files.values()), data)


def shell(reports: Collection[str] = ()) -> str:
    """Return index.html with the texts that say why each step exists.

    reports: the paths of the reports that the page can link to; of others it shows the path.
    """
    texts = {name: {**asdict(why), "linked": why.report in reports} for name, why in WHY.items()}
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    data = json.dumps(texts).replace("<", "\\u003c")
    return index.replace('id="why">{}<', f'id="why">{data}<')


def reduced(tensors: Mapping[str, np.ndarray], manifest: Manifest) -> tuple[Tensors, Manifest]:
    """Return what goes into the file: everything, or what the page needs if that is too much.

    Left out are first the logits of all but the last positions, then what can be recomputed from
    queries and keys, then the residual stream and other intermediates; the manifest lists them.
    """
    kept, left = dict(tensors), []
    layers = [name for name, options in manifest["attentions"].items() if options["recomputable"]]
    inside = {f"{layer}.{step}".lstrip(".") for layer in layers for step in (*INSIDE, "context")}
    needed = re.compile(
        r"(.*\.)?(queries|keys|values|weights|context|overview|allowed|bias)|inputs|lens\..*"
    )
    stream = {name for name in kept if not needed.fullmatch(name) and name != "logits"}
    stream -= {name for name in stream if name.startswith("ladder.")}
    if _size(kept) > AIM and "logits" in kept:
        most = max(1, LOGITS // kept["logits"][0, 0].nbytes)
        kept["logits"] = kept["logits"][:, -most:]
    for group in (inside, stream):
        if _size(kept) > AIM:
            left += sorted(group & kept.keys())
            kept = {name: tensor for name, tensor in kept.items() if name not in group}
    return kept, {**manifest, "left_out": left}


def _size(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
