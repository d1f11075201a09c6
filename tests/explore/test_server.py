"""What the explorer's server gives, to whom, and what it refuses; over real sockets."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn

from headway.explore import local, server, trace_file
from headway.explore.edits import Edit
from headway.explore.tracers import TraceRequest

FIRST = TraceRequest("first")
HEADWAY = str(Path(sys.executable).parent / "headway")


class Fake:
    """A tracer that answers at once; "slow ..." only when released, watching `stop`."""

    def __init__(self):
        self.asked, self.ended = [], []
        self.release = threading.Event()

    def trace(self, ask, stop=lambda: None):
        self.asked.append(ask)
        if ask.text == "mistake":
            raise ValueError("a text that\nnobody reads")
        if ask.text == "bug":
            raise RuntimeError("a secret of the model")
        while ask.text.startswith("slow") and not self.release.wait(0.005):
            try:
                stop()
            except Exception:
                self.ended.append(ask.text)
                raise
        return {"numbers": np.arange(1000.0)}, {"text": ask.text}

    def texts(self):
        return [ask.text for ask in self.asked]


class Answer(SimpleNamespace):
    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """Sends what it is told, nothing tidied up."""

    def __init__(self, port, tracer, folder):
        self.port, self.tracer, self.folder = port, tracer, folder
        page = self("GET", "/").body.decode()
        self.token, self.first = (
            re.search(f'name="headway-{name}" content="([^"]+)"', page)[1]
            for name in ("token", "trace")
        )

    def __call__(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"127.0.0.1:{self.port}", **headers}.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        if body is not None and "Transfer_Encoding" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        result = connection.getresponse()
        answer = Answer(status=result.status, headers=result.headers, body=result.read())
        connection.close()
        return answer

    def post(self, path="/trace", body=None, **given):
        headers = {"X_Headway_Token": self.token, "Content_Type": "application/json"} | given
        return self(
            "POST", path, body if type(body) is bytes else json.dumps(body).encode(), **headers
        )

    def ask(self, text, **more):
        return self.post(body={"text": text, **more})

    def asking(self, text):
        """A question whose answer nobody has read yet: the open socket."""
        body = json.dumps({"text": text})
        sent = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        head = f"POST /trace HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += f"X-Headway-Token: {self.token}\r\nContent-Type: application/json\r\n"
        sent.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return sent


@contextmanager
def serving(folder):
    tracer = Fake()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    built = server.app(server.Traces(tracer, FIRST, folder), server.Queue(), port)
    config = uvicorn.Config(built, log_config=None, log_level="critical", ws="none", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=[[listener]])
    thread.start()
    try:
        yield Client(port, tracer, folder)
    finally:
        tracer.release.set()
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def own(tmp_path):
    """A server of one's own."""
    with serving(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server for what changes nothing."""
    with serving(tmp_path_factory.mktemp("shared")) as client:
        yield client


def until(happened):
    """Wait at most 2 seconds."""
    end = time.monotonic() + 2
    while not happened():
        assert time.monotonic() < end, "it did not happen within 2 seconds"
        time.sleep(0.005)


def status(sent):
    """The status of an answer to `asking`."""
    with sent:
        return int(sent.recv(12)[-3:])


def test_the_page_has_its_token_and_the_first_trace(shared):
    answer = shared("GET", "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert len(shared.token) >= 43
    assert b'content=""' not in answer.body
    trace = shared("GET", f"/trace/{shared.first}")
    assert trace.status == 200
    (shared.folder / "copy").write_bytes(trace.body)
    tensors, manifest = trace_file.load(shared.folder / "copy")
    assert (tensors["numbers"] == np.arange(1000.0)).all()
    assert manifest == {"text": "first", "version": trace_file.VERSION}


def test_every_start_has_another_token(shared, tmp_path):
    with serving(tmp_path) as other:
        assert other.token != shared.token


PLACES = ("/", "/static/page.js", "/trace/FIRST", "/nothing")


@pytest.fixture
def static(tmp_path_factory, monkeypatch):
    """The page's folder, and a file beside it that is none of the page's."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "secret.js").write_text("secret")
    (folder / "static").mkdir()
    for name in ("page.js", "page.css", "picture.svg", "notes.txt"):
        (folder / "static" / name).write_text(name)
    (folder / "static" / "index.html").write_bytes((server.STATIC / "index.html").read_bytes())
    monkeypatch.setattr(server, "STATIC", folder / "static")


def test_files_of_the_page_and_their_types(shared, static):
    for name, kind in (
        ("page.js", "text/javascript; charset=utf-8"),
        ("page.css", "text/css; charset=utf-8"),
        ("picture.svg", "image/svg+xml"),
    ):
        answer = shared("GET", f"/static/{name}")
        assert (answer.status, answer.body.decode()) == (200, name)
        assert answer.headers["content-type"] == kind
    assert shared("HEAD", "/static/page.js").body == b""
    assert shared("POST", "/static/page.js", b"").status == 405


OUTSIDE = (
    "/static/../secret.js /static/..%2fsecret.js /static/%2e%2e/secret.js /static/..%5csecret.js "
    "/static/%2e%2e%2fsecret.js /static//../secret.js /static/..%252fsecret.js /static/./page.js "
    "/static/.. /static/ /static/%00 /static/page.js%00 /static/notes.txt /static/index.html "
    "/trace/../server.py /trace/../.. /trace/..%2f..%2fserver.py /trace/%2e%2e /trace/ /trace "
    "/trace/0 /trace/%00 /trace/FIRST.safetensors //etc/passwd /secret.js"
)


@pytest.mark.parametrize("path", OUTSIDE.split())
def test_nothing_outside_is_found(shared, static, path):
    answer = shared("GET", path.replace("FIRST", shared.first))
    assert answer.status in (307, 404, 405)
    assert b"secret" not in answer.body
    if answer.status == 307:  # to the same place without the slash
        assert answer.headers["location"] == f"http://127.0.0.1:{shared.port}{path.rstrip('/')}"


PORTS = {"other port": ":1", "no port": ""}
STRANGE_HOSTS = [f"{host}{port}" for host in ("127.0.0.1", "localhost") for port in PORTS.values()]
STRANGE_HOSTS += ["evil.example:PORT", "127.0.0.1.evil.example:PORT", "0.0.0.0:PORT", "[::1]:PORT"]
STRANGE_HOSTS += ["localhost:PORT.evil.example", ""]
STRANGE = [{"Host": host} for host in STRANGE_HOSTS]
STRANGE += [
    {"Origin": origin}
    for origin in (
        *("null", "", "http://evil.example", "https://127.0.0.1:PORT", "http://127.0.0.1"),
        *("http://127.0.0.1:1", "http://localhost:PORT0", "http://127.0.0.1:PORT/"),
    )
]
STRANGE += [{"Sec_Fetch_Site": "cross-site"}]


@pytest.mark.parametrize("headers", STRANGE, ids=str)
def test_strangers_are_refused_everywhere(shared, static, headers):
    strange = {name: value.replace("PORT", str(shared.port)) for name, value in headers.items()}
    for place in PLACES:
        answer = shared("GET", place.replace("FIRST", shared.first), **strange)
        assert answer.status == 403
        assert list(answer.json) == ["error"]
    assert shared.post(body={"text": "a stranger's"}, **strange).status == 403
    assert "a stranger's" not in shared.tracer.texts()


def test_a_request_without_a_host_is_refused(shared):
    with socket.create_connection(("127.0.0.1", shared.port)) as sent:
        sent.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert sent.recv(12).endswith(b" 403")


def test_friends_are_answered(shared):
    host = f"localhost:{shared.port}"
    for site in ("same-origin", "none"):
        assert shared("GET", "/", Host=host, Sec_Fetch_Site=site).status == 200
    answer = shared.post(body={"text": "friend"}, Host=host, Origin=f"http://{host}")
    assert answer.status == 200


def test_a_question_needs_the_token_and_json(shared):
    before = len(shared.tracer.asked)
    for path in ("/trace", "/export"):
        for token in (None, "", "wrong", shared.token[:-1], shared.token + "x", "ü"):
            answer = shared.post(path, {"text": "x"}, X_Headway_Token=token)
            assert answer.status == 403, token
        for kind in (None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
            assert shared.post(path, {"text": "x"}, Content_Type=kind).status == 415, kind
        assert shared("GET", path).status == 405
    assert len(shared.tracer.asked) == before
    assert shared.post(body={"text": "y"}, Content_Type="application/json; charset=utf-8")


WRONG = {
    "no text": {},
    "text": {"text": 3},
    "unknown": {"text": "x", "texts": "y"},
    "address": {"text": "x", "address": "y"},
    "write": {"text": "x", "write": 201},
    "write below": {"text": "x", "write": -1},
    "write true": {"text": "x", "write": True},
    "write half": {"text": "x", "write": 1.5},
    "temperature": {"text": "x", "temperature": "hot"},
    "temperature below": {"text": "x", "temperature": -1},
    "temperature none": {"text": "x", "temperature": None},
    "top_k": {"text": "x", "top_k": 0.5},
    "seed": {"text": "x", "seed": 2**32},
    "edits": {"text": "x", "edits": {}},
    "edit": {"text": "x", "edits": [{"what": "nonsense", "attention": "a"}]},
    "edit of none": {"text": "x", "edits": [None]},
    "mistake": {"text": "mistake"},
    "a list": [],
    "null": None,
    "nothing": b"",
    "no JSON": b'{"text": ',
    "no UTF-8": b'{"text": "\xff"}',
    "NaN": b'{"text": "x", "temperature": NaN}',
    "infinity": b'{"text": "x", "temperature": Infinity}',
    "overflow": b'{"text": "x", "temperature": 1e999}',
    "long number": b'{"text": "x", "temperature": 1' + b"0" * 400 + b"}",
    "longer number": b'{"text": "x", "seed": 1' + b"0" * 9000 + b"}",
    "NaN for a seed": b'{"text": "x", "seed": NaN}',
    "deep": b"[" * 60_000,
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_no_question_is_400_and_one_line(shared, body):
    answer = shared.post(body=body)
    assert answer.status == 400, answer.body
    assert list(answer.json) == ["error"]
    assert answer.json["error"]
    assert "\n" not in answer.json["error"]
    assert len(answer.json["error"]) < 200


def test_a_question_reaches_the_tracer_as_it_was_asked(own):
    edit = {"what": "uniform", "attention": "blocks.0.attention", "head": 1}
    more = {"write": 3, "temperature": 1, "top_k": None, "seed": 7, "edits": [edit]}
    assert own.ask("ünï·", **more).status == 200
    edits = (Edit("uniform", "blocks.0.attention", 1),)
    assert own.tracer.asked[1:] == [TraceRequest("ünï·", edits, 3, 1.0, None, 7)]


def test_a_text_may_be_as_long_as_this(own, monkeypatch):
    monkeypatch.setattr(server, "CHARACTERS", 9)
    assert own.ask("x" * 9).status == 200
    answer = own.ask("x" * 10)
    assert answer.status == 400
    assert "9 characters" in answer.json["error"]
    assert own.tracer.texts() == ["first", "x" * 9]


def test_a_large_body_is_refused_whatever_it_says_of_itself(shared):
    body = json.dumps({"text": "x" * 70_000}).encode()
    fits = json.dumps({"text": "y" * (server.BODY - 12)}).encode()
    assert len(fits) == server.BODY
    assert shared.post(body=fits).status == 200
    assert shared.post(body=fits + b" ").status == 413
    answer = shared.post(body=body)
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert shared.post(body=chunked, Transfer_Encoding="chunked").status == 413
    assert "x" * 70_000 not in shared.tracer.texts()


def test_a_body_without_end_is_not_read_to_its_end(shared):
    head = f"POST /trace HTTP/1.1\r\nHost: localhost:{shared.port}\r\n"
    head += f"X-Headway-Token: {shared.token}\r\nContent-Type: application/json\r\n"
    piece = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    for length in ("Transfer-Encoding: chunked", "Content-Length: 999999999999"):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as sent:
            sent.sendall(f"{head}{length}\r\n\r\n".encode())
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                sent.sendall(piece * 2000)  # 32 MB; the server hangs up long before


def test_the_same_question_is_answered_once(own):
    ids = [own.ask("words", temperature=heat).json["trace"] for heat in (1, 1.0, 1)]
    ids.append(own.ask("words", temperature=1, seed=1).json["trace"])
    assert own.ask("first").json["trace"] == own.first
    assert own.tracer.texts() == ["first", "words", "words"]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert all(re.fullmatch("[0-9a-f]{64}", sent_request) for sent_request in ids)


def test_eight_files_are_kept_and_the_first_stays(own):
    ids = [own.ask(str(number)).json["trace"] for number in range(10)]
    kept = [own.first, *ids[-7:]]
    assert {file.stem for file in own.folder.iterdir()} == set(kept)
    for sent_request in (own.first, *ids):
        assert own("GET", f"/trace/{sent_request}").status == (200 if sent_request in kept else 404)
    assert own.ask("0").json["trace"] == ids[0]  # made again
    assert own("GET", f"/trace/{ids[0]}").status == 200
    assert own("GET", f"/trace/{own.first}").status == 200
    assert len(list(own.folder.iterdir())) == server.KEPT


def test_few_files_are_kept_when_they_are_large(own, monkeypatch):
    monkeypatch.setattr(server, "BYTES", 1)
    ids = [own.ask(str(number)).json["trace"] for number in range(4)]
    # The page compares the latest with the one before.
    assert {file.stem for file in own.folder.iterdir()} == {own.first, *ids[-2:]}


RANGES = {
    "bytes=0-0": slice(0, 1),
    "bytes=100-199": slice(100, 200),
    "bytes=8000-": slice(8000, None),
    "bytes=-7": slice(-7, None),
    "bytes=50-99999999": slice(50, None),
}


@pytest.mark.parametrize(("asked", "part"), RANGES.items(), ids=RANGES)
def test_parts_of_a_trace(shared, asked, part):
    complete = shared("GET", f"/trace/{shared.first}")
    assert complete.headers["accept-ranges"] == "bytes"
    answer = shared("GET", f"/trace/{shared.first}", Range=asked)
    assert answer.status == 206
    assert answer.body == complete.body[part]
    start, stop, _ = part.indices(len(complete.body))
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(complete.body)}"
    assert answer.headers["content-length"] == str(stop - start)


def test_a_part_beyond_the_end(shared):
    size = len(shared("GET", f"/trace/{shared.first}").body)
    answer = shared("GET", f"/trace/{shared.first}", Range=f"bytes={size}-")
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{size}"


@pytest.fixture
def export(monkeypatch):
    """What the function that makes the single file was given."""
    calls = SimpleNamespace(given=[])

    def page(tensors, manifest, address, base):
        if address == "too large":
            raise ValueError("too large: give a shorter text")
        assert base is None
        calls.given.append((sorted(tensors), manifest["text"], address))
        return "<!doctype html>ü"

    monkeypatch.setattr(server, "page", page)
    return calls


def test_the_single_file(shared, export):
    answer = shared.post("/export", {"text": "first", "address": "head=1"})
    assert (answer.status, answer.body.decode()) == (200, "<!doctype html>ü")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="headway.html"'
    assert shared.post("/export", {"text": "other"}).status == 200
    assert export.given == [(["numbers"], "first", "head=1"), (["numbers"], "other", "")]
    assert shared.tracer.texts().count("first") == 1
    for address in ("too large", 3, None):
        assert shared.post("/export", {"text": "first", "address": address}).status == 400


def test_the_reports_that_the_page_refers_to(shared):
    for path in server.REPORTS:
        answer = shared("GET", f"/{path}")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body == server.REPORTS[path].read_bytes()
    assert "docs/lab/scale/report.md" in server.REPORTS
    texts = shared("GET", "/").body.decode().partition('id="why">')[2].partition("</script>")[0]
    assert json.loads(texts)["scaled"]["linked"]
    assert not json.loads(texts)["x"]["linked"]
    for path in ("/docs/lab/none/report.md", "/docs/lab/../report.md", "/docs/README.md"):
        assert shared("GET", path).status == 404


def test_every_answer_has_the_headers(shared, static, export, capfd):
    answers = [
        *(shared("GET", place.replace("FIRST", shared.first)) for place in PLACES),
        *(shared("GET", place, Host="evil.example") for place in PLACES),
        shared("GET", f"/trace/{shared.first}", Range="bytes=0-0"),
        shared("GET", f"/trace/{shared.first}", Range="bytes=99999999-"),
        shared("GET", f"/trace/{shared.first}", Range="nonsense"),
        shared("GET", "/trace/"),
        shared("HEAD", "/"),
        shared("OPTIONS", "/trace"),
        shared.ask("headers"),
        shared.ask("mistake"),
        shared.ask("bug"),
        shared.post(body={"text": "x"}, X_Headway_Token="wrong"),
        shared.post(body={"text": "x"}, Content_Type="text/plain"),
        shared.post(body=b"x" * 70_000),
        shared.post("/export", {"text": "headers"}),
    ]
    seen = {answer.status for answer in answers}
    assert seen == {200, 206, 307, 400, 403, 404, 405, 413, 415, 416, 500}
    for answer in answers:
        for name, value in {
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
            "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            assert answer.headers.get_all(name) == [value], answer.status
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_unforeseen_error_is_told_in_the_terminal_alone(shared, capfd):
    answer = shared.ask("bug")
    assert answer.status == 500
    assert list(answer.json) == ["error"]
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    message = capfd.readouterr().err
    assert "Traceback" in message
    assert message.count("RuntimeError: a secret of the model") == 1


def test_work_leaves_others_their_answers(own):
    slow = own.asking("slow")
    until(lambda: "slow" in own.tracer.texts())
    began = time.monotonic()
    assert own("GET", "/").status == 200
    assert own("GET", f"/trace/{own.first}").status == 200
    assert own.ask("first").status == 200  # there already
    assert time.monotonic() - began < 2
    own.tracer.release.set()
    assert status(slow) == 200


def test_one_at_a_time_four_wait_and_more_are_told(own):
    slow = [own.asking("slow 0")]
    until(lambda: "slow 0" in own.tracer.texts())
    for number in range(1, 5):
        slow.append(own.asking(f"slow {number}"))
        time.sleep(0.05)  # so that they stand in line in this order
    answer = own.ask("one more")
    assert answer.status == 503
    assert "busy" in answer.json["error"]
    assert own.tracer.texts() == ["first", "slow 0"]
    own.tracer.release.set()
    assert [status(sent_request) for sent_request in slow] == [200] * 5
    assert own.tracer.texts() == ["first", *(f"slow {number}" for number in range(5))]
    assert own.ask("one more").status == 200


def test_the_same_question_twice_at_once_is_answered_once(own):
    slow = [own.asking("slow") for _ in range(2)]
    until(lambda: "slow" in own.tracer.texts())
    time.sleep(0.05)
    own.tracer.release.set()
    assert [status(sent_request) for sent_request in slow] == [200] * 2
    assert own.tracer.texts() == ["first", "slow"]


def test_work_has_an_end(own, monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 0.1)
    answer = own.ask("slow")
    assert answer.status == 504
    assert "0.1 seconds" in answer.json["error"]
    assert own.tracer.ended == ["slow"]
    assert [file.stem for file in own.folder.iterdir()] == [own.first]
    assert own.ask("quick").status == 200


def test_waiting_does_not_count_as_work(own, monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 0.2)
    began = time.monotonic()
    sent = [own.asking(text) for text in ("slow 1", "slow 2")]
    assert [status(sent_request) for sent_request in sent] == [504, 504]
    assert time.monotonic() - began >= 2 * 0.2  # each had its own time


def test_who_leaves_is_not_worked_for(own):
    at_work = own.asking("slow at work")
    until(lambda: "slow at work" in own.tracer.texts())
    waiting = [own.asking(f"waiting {number}") for number in range(4)]
    until(lambda: own.ask("one more").status == 503)
    for sent_request in waiting:
        sent_request.close()
    kept = own.asking("kept")  # refused, were they still in line
    time.sleep(0.1)
    assert own.tracer.ended == []
    at_work.close()
    until(lambda: own.tracer.ended == ["slow at work"])
    assert status(kept) == 200
    assert own.tracer.texts() == ["first", "slow at work", "kept"]


def test_a_question_that_is_cut_off_is_forgotten(own, capfd):
    sent = own.asking("x")
    with sent:
        sent.recv(12)
        sent.recv(9999)
        head = f"POST /trace HTTP/1.1\r\nHost: 127.0.0.1:{own.port}\r\nContent-Length: 99\r\n"
        head += f"X-Headway-Token: {own.token}\r\nContent-Type: application/json\r\n\r\n{{"
        sent.sendall(head.encode())
    assert own.ask("y").status == 200
    assert own.tracer.texts() == ["first", "x", "y"]
    assert capfd.readouterr().err == ""


def test_the_browser_opens_when_the_server_listens_and_ctrl_c_ends_it(monkeypatch, capsys):
    seen = []

    def look(address):
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/")
        seen.append(connection.getresponse().status)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("webbrowser.open", look)
    server.serve(Fake(), FIRST, port=8420, show=True)
    assert seen == [200]
    message = capsys.readouterr()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/  \(stop with Ctrl-C\)\n", message.out)
    assert message.err == ""


def test_mistakes_are_told_before_the_server_listens(monkeypatch):
    monkeypatch.setattr(local, "listener", lambda port: pytest.fail("it listens"))
    for text, message in (("mistake", "nobody reads"), ("x" * 100_001, "it has 100,001")):
        with pytest.raises(ValueError, match=message):
            server.serve(Fake(), TraceRequest(text), port=8420, show=True)


def test_a_port_that_is_taken():
    with local.listener(8420) as taken:
        port = taken.getsockname()[1]
        with local.listener(port) as listener:
            host, other = listener.getsockname()
            assert host == "127.0.0.1"
            assert port < other < port + 100


@contextmanager
def started(folder, *command):
    """A server in a process of its own, and its port."""
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process, int(re.search(r":(\d+)/", process.stdout.readline())[1])
        finally:
            process.kill()


def test_the_command_on_this_machine_alone_and_ctrl_c(tmp_path):
    command = [HEADWAY, "explore", "--ladder", "--no-open"]
    with started(tmp_path, *command) as (process, port):
        ladder = Client(port, None, None)
        assert ladder("GET", f"/trace/{ladder.first}").status == 200
        assert [file.name[:8] for file in tmp_path.iterdir()] == ["headway-"]
        with suppress(TimeoutError), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=10)
    assert (process.returncode, out, error) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


SLOW = """
import time
from headway.explore import server
from headway.explore.tracers import TraceRequest

class Slow:
    def trace(self, ask, stop=lambda: None):
        while ask.text == "slow":
            print("at work", flush=True)
            stop()
            time.sleep(0.01)
        return {}, {}

server.serve(Slow(), TraceRequest(""), port=8420, show=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_server_ends_the_work(tmp_path, how):
    with started(tmp_path, sys.executable, "-c", SLOW) as (process, port):
        client = Client(port, None, None)
        sent = [client.asking("slow") for _ in range(2)]
        assert process.stdout.readline() == "at work\n"
        process.send_signal(how)
        _, error = process.communicate(timeout=10)
        assert [status(sent_request) for sent_request in sent] == [503] * 2
    assert (process.returncode, error) == (0, "")
    assert list(tmp_path.iterdir()) == []
