"""Trace files from anywhere: what opens, and what is refused in one line; no file is trusted."""

import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import safetensors.numpy
import torch
import uvicorn

import headway
from headway.explore import server, trace_file
from headway.explore.notebook import _RecordedTrace, show
from headway.explore.tracers import LadderTracer, ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import StoredModel
from pages import opened, settled, table

TEXT = "it was the age"
browser_test = pytest.mark.xdist_group("browser")


def of_attention():
    """A trace of one attention with a bias and a mask that is not a band."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, 6, 4, generator=generator) for heads in (4, 2, 2)]
    bias = torch.linspace(-3, 5, 36).reshape(6, 6) % 1.7
    odd = headway.Mask(lambda batch, head, query, key: key % 3 != 1)
    with headway.trace() as steps:
        headway.attend(*parts, kernel="plain", bias=bias, mask=odd)
    return _RecordedTrace(steps, "one two three four five six").trace(TraceRequest(""))


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """A folder with a trace file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    tracer = ModelTracer(StoredModel.open(run.path))
    traces = {
        "model": tracer.trace(TraceRequest(TEXT, write=8)),
        "with the ladder": WithLadder(tracer).trace(TraceRequest(TEXT)),
        "ladder": LadderTracer().trace(TraceRequest("one two three")),
        "attention": of_attention(),
    }
    for name, trace in traces.items():
        trace_file.save(folder / f"{name}.safetensors", *trace)
    return folder


KINDS = ("model", "with the ladder", "ladder", "attention")


def attempt(path):
    """Open a file; the message in one line if it is refused."""
    try:
        trace_file.opened(path)
    except ValueError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_opens_with_its_numbers(files, kind):
    path = files / f"{kind}.safetensors"
    tensors, manifest = trace_file.opened(path)
    stored = safetensors.numpy.load_file(path)
    assert tensors.keys() == stored.keys()
    assert all(np.array_equal(tensors[name], stored[name], equal_nan=True) for name in stored)
    assert manifest["version"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_opens_or_is_refused_in_a_line(files, tmp_path, kind):
    content = (files / f"{kind}.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    draw = random.Random(kind)
    path = tmp_path / "damaged.safetensors"
    for end in [*range(40), *(draw.randrange(len(content)) for _ in range(60)), len(content) - 1]:
        path.write_bytes(content[:end])
        assert attempt(path), end
    path.write_bytes(content + b"\0")
    assert attempt(path)
    refused = 0
    for _ in range(400):
        at = draw.randrange(header) if draw.random() < 0.9 else draw.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        refused += attempt(path) is not None
    assert 100 < refused < 400  # most, but not the changes of a text or of a number


def changed(value, draw):
    """Every manifest with one part removed or replaced."""
    odd = (None, -1, 0, 10**9, 1.5, float("nan"), "", "constructor", [], {}, True, [[]], "x" * 50)

    def inside(part, put):
        yield from (put(replacement) for replacement in draw.sample(odd, 4))
        if isinstance(part, dict):
            for key in part:
                yield put({name: one for name, one in part.items() if name != key})
                yield from inside(part[key], lambda new, key=key: put({**part, key: new}))
        elif isinstance(part, list) and part:
            yield put(part[1:])
            for i in {0, len(part) - 1}:
                yield from inside(part[i], lambda new, i=i: put([*part[:i], new, *part[i + 1 :]]))

    return inside(value, deepcopy)


def write_manifest(path, content, manifest):
    """Replace the manifest in the bytes of a file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["headway"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


@contextmanager
def served(path):
    """A server of one file, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = server.app(server.File(path), server.Queue(), port)
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        running.should_exit = True
        thread.join()


VIEWS = {
    "model": (
        "",
        "layer=0",
        "layer=1&head=1",
        "layer=0&head=0&cell=3,1",
        "view=heads",
        "view=lens",
    ),
    "ladder": ("", "rung=causal&head=0", "rung=stacked&head=1&cell=2,1"),
    "attention": ("", "layer=0", "layer=0&head=3&step=context", "layer=0&head=1&cell=3,0"),
}
SHOWN = 3  # files per kind in the browser


@browser_test
@pytest.mark.parametrize("kind", VIEWS)
def test_what_opens_can_be_shown(page, files, tmp_path, kind):
    """Every key removed or replaced: the file is refused in a line, or every view is drawn."""
    draw = random.Random(kind)
    path = tmp_path / "t.safetensors"
    content = (files / f"{kind}.safetensors").read_bytes()
    accepted = []
    for manifest in changed(trace_file.load(files / f"{kind}.safetensors")[1], draw):
        write_manifest(path, content, manifest)
        if attempt(path) is None:
            accepted.append(path.read_bytes())
    assert len(accepted) > 20  # changes of texts and numbers that no check can know
    with served(path) as address:
        for one in draw.sample(accepted, SHOWN):
            path.write_bytes(one)
            for view in VIEWS[kind]:
                page.goto("about:blank")
                opened(page, f"{address}#{view}")
                assert page.locator(".error").all_inner_texts() == []
                assert page.locator("main h2").count() > 0


@browser_test
def test_a_served_file_has_one_text_and_says_how_to_get_a_live_page(page, files):
    tensors, _ = trace_file.opened(files / "model.safetensors")
    asked = []
    page.on("request", lambda request: asked.append((request.method, request.headers)))
    with served(files / "model.safetensors") as address:
        opened(page, f"{address}#layer=1&head=2&step=weights&table=1")
        assert np.array_equal(table(page), tensors["blocks.1.attention.weights"][0, 2])
        assert page.locator("#text").is_disabled()
        assert page.get_by_role("button", name="save as HTML").count() == 0
        assert "headway explore tiny" in page.inner_text("aside")
        opened(page, f"{address}#text=another&edit=off|blocks.0.attention|0")
        assert page.locator(".tokens .token").count() == len(TEXT)
        opened(page, f"{address}#ladder=1&rung=causal")  # not in this file
        assert page.locator(".band").count() == 2
        assert page.locator(".error").count() == 0
        assert "the ladder" not in page.inner_text(".crumbs")
    assert {method for method, _ in asked} == {"GET"}
    assert [headers["range"] for _, headers in asked if "range" in headers]


def test_a_served_file_gives_nothing_else(files, tmp_path):
    path = tmp_path / '"><b>.safetensors'
    path.write_bytes((files / "model.safetensors").read_bytes())
    with served(path) as address:
        get = urllib.request.urlopen
        page = get(address).read().decode()
        assert 'name="headway-token" content=""' in page
        assert "<b>" not in page
        assert get(f"{address}trace/file").read() == path.read_bytes()
        part = urllib.request.Request(f"{address}trace/file", headers={"Range": "bytes=8-15"})
        assert get(part).read() == path.read_bytes()[8:16]
        for name, body in (("trace/model", None), ("trace", b"{}"), ("export", b"{}")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(address + name, body)
        path.unlink()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{address}trace/file")


NASTY = "</script><img src=x onerror=fired()>\"'\u202e\u2028${fired()}<b>"


def hostile(manifest):
    """Every text of a manifest replaced; names of steps and attentions renamed in the same way."""
    token = {"display": NASTY, "bytes": NASTY, "id": 1}
    manifest = json.loads(json.dumps(manifest).replace("blocks.0", NASTY.replace('"', '\\"')))
    for tokens in (manifest["tokens"], manifest.get("written", [])):
        tokens[:] = [token] * len(tokens)
    texts = dict.fromkeys(("title", "text", "rung", "path"), NASTY)
    edits = [{"what": NASTY, "attention": f"{NASTY}.attention", "head": 0}]
    kind = {"name": NASTY, "shown": ["weights"], "label": NASTY, "heads": "any", "without": NASTY}
    lists = {"vocabulary": [NASTY] * 256, "edit_kinds": [kind]}
    for rung in manifest["ladder"]["rungs"]:
        rung |= dict.fromkeys(("idea", "equation", "source"), NASTY)
    for options in manifest["attentions"].values():
        options["normalizer"] = NASTY
    return manifest | texts | lists | {"edits": edits}


@browser_test
def test_hostile_text_in_a_file_stays_text(page, files, tmp_path):
    tensors, manifest = trace_file.load(files / "with the ladder.safetensors")
    named = {name.replace("blocks.0", NASTY): tensor for name, tensor in tensors.items()}
    path = tmp_path / "nasty.safetensors"
    page.add_init_script("window.times = 0; window.alert = window.fired = () => { times += 1; }")
    named = {name.replace("causal", "<b>"): tensor for name, tensor in named.items()}
    trace_file.save(path, named, json.loads(json.dumps(hostile(manifest)).replace("causal", "<b>")))
    (tmp_path / "page.html").write_text(show(str(path)).html)
    with served(path) as address:
        for at in (address, (tmp_path / "page.html").as_uri()):
            for view in ("", "layer=0", "layer=0&head=0&table=1", "layer=0&head=0&cell=2,1"):
                opened(page, f"{at}#{view}")
                assert page.locator(".error").all_inner_texts() == []
                assert page.locator("main img, header img, .tokens img, b").count() == 0
            opened(page, f"{at}#layer=1&head=0&step=weights")
            assert page.inner_text(".facts").count("<img src=x onerror=fired()>")
            assert page.locator("aside code").all_inner_texts()[-1].startswith("headway explore '")
            for view in ("ladder=1&rung=<b>", "rung=<b>&head=0", "rung=<b>&head=0&cell=1,1"):
                opened(page, f"{at}#{view}")
                assert page.locator("img, b").count() == 0
                assert "<b>" in page.inner_text(".crumbs")
            assert page.evaluate("window.times") == 0


@browser_test
def test_names_of_javascript_are_no_names_of_tensors(page, files):
    with served(files / "model.safetensors") as address:
        for name in ("constructor", "__proto__", "toString"):
            opened(page, f"{address}#layer=0&tensor={name}")
            assert page.locator(".error").count() == 0


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """1,000 tokens, too many for a strip or a menu."""
    weights = np.random.default_rng(0).random((2, 1000, 1000), dtype=np.float32)
    manifest = {"steps": [["weights", [2, 1000, 1000]]], "attentions": {}, "overview": 48}
    manifest |= {"kind": "trace", "title": "", "text": "", "vocabulary": []}
    manifest["tokens"] = [{"display": f"t{i}"} for i in range(1000)]
    path = tmp_path_factory.mktemp("long") / "long.safetensors"
    trace_file.save(path, {"weights": weights}, manifest)
    return path


@browser_test
def test_of_a_long_text_a_window_is_shown_that_moves(page, long_file):
    def window():
        settled(page)
        names = page.locator(".tokens .token").all_inner_texts()
        return len(names), names[0], names[-1]

    with served(long_file) as address:
        opened(page, f"{address}#layer=0&head=1&step=weights")
        assert window() == (300, "t700", "t999")
        assert page.get_by_role("button", name="later tokens").is_disabled()
        page.get_by_role("button", name="earlier tokens").click()
        settled(page)
        count, first, _ = window()
        assert count == 300
        assert int(first[1:]) < 600
        opened(page, f"{address}#layer=0&head=1&cell=500,7")
        assert window() == (300, "t350", "t649")
        assert page.locator("select[aria-label=query]").count() == 0
        page.get_by_role("spinbutton", name="query").fill("20")
        page.keyboard.press("Enter")
        assert window() == (300, "t0", "t299")
        assert "cell=20,7" in page.url
        page.locator(".tokens .token").nth(30).click()
        settled(page)
        assert "cell=30,7" in page.url
        assert page.evaluate("document.querySelectorAll('option').length") < 100


@browser_test
def test_of_a_large_tensor_some_rows_are_read(page, tmp_path):
    tensors = {
        "embedded": np.repeat(np.linspace(-1, 1, 48, dtype=np.float32), 1000)[None, :, None],
        "blocks.0.attention.weights": np.eye(4)[None, None],
    }
    tensors["embedded"] = np.repeat(tensors["embedded"], 24, axis=-1)
    manifest = {"steps": [[name, list(tensor.shape)] for name, tensor in tensors.items()]}
    manifest |= {"attentions": {}, "overview": 48, "kind": "trace", "title": "", "text": ""}
    manifest["tokens"] = [{"display": "t"}] * 48_000
    trace_file.save(tmp_path / "t.safetensors", tensors, manifest)
    sizes = []
    page.on("response", lambda r: sizes.append(int(r.headers.get("content-length", 0))))
    with served(tmp_path / "t.safetensors") as address:
        opened(page, f"{address}#layer=0")
        colours = page.locator(".box canvas").first.evaluate(
            """canvas => [...Array(24).keys()].map(i => [...canvas.getContext("2d").getImageData(
                1, (i + 0.5) * canvas.height / 24, 1, 1).data])"""
        )
    assert max(sizes) < 3e6  # the header has the tokens
    assert sizes.count(4 * 24) == 24
    assert all((red < blue) == (i < 12) for i, (red, _, blue, _) in enumerate(colours))


MISSING = {
    "kind": lambda manifest: manifest.pop("kind"),
    "tokens": lambda manifest: manifest.pop("tokens"),
    "`text` must be str, not int": lambda manifest: manifest.update(text=3),
    "must be finite": lambda manifest: manifest["attentions"][""].update(scale=1e301),
    "the tokens do not fit": lambda manifest: manifest["tokens"].pop(),
    "the tensor 'no' is missing": lambda manifest: manifest["attentions"][""].update(bias="no"),
}


@pytest.mark.parametrize("message", MISSING)
def test_what_is_wrong_is_said(files, tmp_path, message):
    tensors, manifest = trace_file.load(files / "attention.safetensors")
    MISSING[message](manifest)
    trace_file.save(tmp_path / "t.safetensors", tensors, manifest)
    assert message in attempt(tmp_path / "t.safetensors")


def test_other_files_are_refused(files, tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3)}, path)
    assert "has no manifest; `headway trace" in attempt(path)
    path.write_bytes(b"")
    assert "is not a trace file" in attempt(path)
    with pytest.raises(IsADirectoryError):
        trace_file.opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        trace_file.opened(tmp_path / "nothing.safetensors")
    content = (files / "attention.safetensors").read_bytes()
    manifest = trace_file.load(files / "attention.safetensors")[1]
    for version in (1, 3, None, "2", [2]):
        write_manifest(path, content, manifest | {"version": version})
        assert "this version of Headway reads version 2" in attempt(path)
    write_manifest(path, content, {n: v for n, v in manifest.items() if n != "version"})
    assert "its format has version 1" in attempt(path)
    for text, message in (("{", "not a trace file"), ("[" * 10**5, "nested too deeply"), ("3", "")):
        safetensors.numpy.save_file({"w": np.ones(3)}, path, {"headway": text})
        assert message in attempt(path)
    path.write_bytes((2**40).to_bytes(8, "little") + content)
    assert "its header has 1,099,511,627,776 bytes (at most 67,108,864)" in attempt(path)
    safetensors.numpy.save_file({"w": np.ones(3, np.int64)}, path, {"headway": '{"version": 2}'})
    assert "the type of 'w' is I64" in attempt(path)
    monkeypatch.setattr(trace_file, "TENSORS", 2)
    assert "it is too large: it has" in attempt(files / "attention.safetensors")


def test_a_file_in_a_notebook(files, tmp_path, monkeypatch):
    html = show(str(files / "attention.safetensors")).html
    assert "explore/main.js" in html
    with pytest.raises(ValueError, match="remove the text"):
        show(str(files / "attention.safetensors"), "one two")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        show("nothing.safetensors")
