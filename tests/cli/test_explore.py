"""`headway explore`: what it opens the page on, the file that it writes, and mistakes."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from headway.cli import main
from headway.explore import trace_file
from headway.explore.tracers import Compared, LadderTracer, ModelTracer, TraceRequest, WithLadder
from headway.hf.stored import find
from headway.ladder.rung import SENTENCE

TEXT = "It was the best of times, it was the worst of times.\n" * 60
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application")  # its arguments are ours
IT_WAS = TraceRequest("It was")
SIZES = "--steps 1 --width 8 --layers 1 --heads 1 --context 32 --tokenizer char --name tiny"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a trace file of it, and a part of that file."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text(TEXT)
    command = [str(Path(sys.executable).parent / "headway"), "train", "text.txt", *SIZES.split()]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    file = folder / "t.safetensors"
    trace_file.save(file, *ModelTracer(find("tiny", str(folder / "runs"))).trace(IT_WAS))
    (folder / "part.safetensors").write_bytes(file.read_bytes()[:500])
    return folder


@pytest.fixture
def headway(place, monkeypatch):
    """The command in this process: its exit status, and what would have been served."""
    served = []

    def serve(tracer, first, *, port, show):
        served.append(SimpleNamespace(tracer=tracer, first=first, port=port, show=show))

    def serve_file(path, *, port, show):
        trace_file.opened(path)
        served.append(SimpleNamespace(path=path, port=port, show=show))

    def command(*arguments):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["headway", "explore", *arguments])
        monkeypatch.setattr("headway.explore.server.serve", serve)
        monkeypatch.setattr("headway.explore.server.serve_file", serve_file)
        monkeypatch.setattr("headway.torch.engine.generate", writing)
        with pytest.raises(SystemExit) as stopped:
            main.main()
        return stopped.value.code, served.pop() if served else None

    return command


def writing(model, prompts, *, tokens, **sampling):
    """The first token of the vocabulary, again and again."""
    return ([0] for _ in range(tokens))


@pytest.fixture
def export(monkeypatch):
    """The module that makes the single file."""

    def page(tensors, manifest, base=None):
        if not tensors:
            raise AssertionError("nothing to show")
        if len(manifest["tokens"]) > 8:
            raise ValueError("too large: give a shorter text")
        if manifest["text"] == "half":
            return "a character that cannot be written: \ud800"
        compared = "" if base is None else f" with {base[1]['title']}"
        written = len(manifest.get("written", []))
        return f"{manifest['kind']} {manifest['text']} {written} ü{compared}"

    monkeypatch.setitem(sys.modules, "headway.explore.export", SimpleNamespace(page=page))


def test_what_the_page_is_opened_on(headway):
    code, served = headway("tiny", "It was")
    assert code == 0
    assert isinstance(served.tracer, WithLadder)  # the page refers to it
    assert served.tracer.tracer.stored.name == "tiny"
    assert served.first == TraceRequest("It was", write=24)
    assert (served.port, served.show) == (8420, True)
    _, served = headway("runs/tiny", "--port", "9000", "--no-open")
    assert served.first == TraceRequest("\n" * 16, write=24)
    assert (served.port, served.show) == (9000, False)
    _, served = headway("--ladder")
    assert isinstance(served.tracer, LadderTracer)
    assert served.first == TraceRequest(SENTENCE)
    for arguments in (["--ladder", "words of mine"], ["words of mine", "--ladder"]):
        assert headway(*arguments)[1].first == TraceRequest("words of mine")


def test_a_file_instead_of_a_server(headway, export, place, capsys):
    assert headway("tiny", "It was", "--html", "page.html") == (0, None)
    assert (place / "page.html").read_text(encoding="utf-8") == "model It was 24 ü"
    assert capsys.readouterr().out == "page.html: 6 tokens, 0.0 MB\n"
    assert headway("--ladder", "two words", "--html", "page.html") == (0, None)
    assert (place / "page.html").read_text(encoding="utf-8") == "ladder two words 0 ü"


def test_another_model_to_compare_with(headway, export, place):
    shutil.copytree(place / "runs" / "tiny", place / "runs" / "second")
    _, served = headway("tiny", "It was", "--compare", "second")
    assert isinstance(served.tracer, Compared)
    assert served.tracer.other.title == "second"
    assert headway("tiny", "It was", "--compare", "second", "--html", "page.html") == (0, None)
    shutil.rmtree(place / "runs" / "second")
    assert (place / "page.html").read_text(encoding="utf-8") == "model It was 24 ü with second"


def test_a_trace_file(headway, export, place, capsys):
    code, served = headway("t.safetensors", "--port", "9000", "--no-open")
    assert code == 0
    assert (served.path, served.port, served.show) == (Path("t.safetensors"), 9000, False)
    shutil.copy(place / "t.safetensors", place / "copy")  # any name that is not a run's
    shutil.copy(place / "t.safetensors", place / "tiny")
    assert headway("copy")[1].path == Path("copy")
    assert headway("tiny", "It was")[1].first == TraceRequest("It was", write=24)
    (place / "copy").unlink()
    (place / "tiny").unlink()
    assert headway("t.safetensors", "--html", "page.html") == (0, None)
    assert (place / "page.html").read_text(encoding="utf-8") == "model It was 0 ü"
    assert capsys.readouterr().out == "page.html: 6 tokens, 0.0 MB\n"


BAD = {
    "no such file": (["no.safetensors"], "no.safetensors: No such file"),
    "a file and a text": (["t.safetensors", "It"], "trace file of one text; remove the text"),
    "a file and an engine": (["t.safetensors", "--engine", "jax"], "--compare, --engine"),
    "a file and a model": (["t.safetensors", "--compare", "tiny"], "remove the text, --compare"),
    "the ladder and a model": (["--ladder", "--compare", "tiny"], "needs two models"),
    "nothing to compare": (["tiny", "It", "--compare", "tinny"], "available runs: tiny"),
    "part of a file": (["part.safetensors"], "part.safetensors is not a trace file"),
    "part of a file as a page": (["part.safetensors", "--html", "x.html"], "is not a trace file"),
    "no trace": (["runs/tiny/checkpoints/step-000001/model.safetensors"], "has no manifest"),
    "another file": (["text.txt"], "text.txt is not a trace file: it is damaged or too large"),
    "nothing": ([], "give a model (`headway runs` lists the runs) or --ladder"),
    "a port alone": (["--port", "9000"], "or --ladder"),
    "no such run": (["tinny", "It"], "available runs: tiny"),
    "no run there": (["nowhere/tiny", "It"], "nor in the Hugging Face cache"),
    "no folder there": (["./nowhere/tiny", "It"], "run 'tiny' not found in nowhere"),
    "no runs": (["tiny", "--runs", "nowhere"], "`headway train` creates one"),
    "run and ladder": (["tiny", "It", "--ladder"], "--ladder takes one text"),
    "three": (["tiny", "It", "was"], "was"),
    "option": (["tiny", "It", "--prot", "80"], "--port"),
    "port": (["--ladder", "--port", "many"], "many"),
    "empty page": (["tiny", "", "--html", "x.html"], "the text must have 1 to 32 tokens"),
    "long page": (
        ["tiny", "It was" * 9, "--html", "x.html"],
        "must have 1 to 32 tokens (it has 54)",
    ),
    "unseen": (["tiny", "ü", "--html", "x.html"], "does not know the characters 'ü'"),
    "no words": (["--ladder", "", "--html", "x.html"], "must have 1 to 32 words"),
    "many words": (["--ladder", "a " * 33, "--html", "x.html"], "1 to 32 words (it has 33)"),
    "too large": (["--ladder", "a " * 9, "--html", "x.html"], "too large"),
    "half a file": (["--ladder", "half", "--html", "x.html"], "surrogates not allowed"),
    "no folder": (["--ladder", "a", "--html", "no/where.html"], "no/where.html: No such file"),
    "a folder": (["--ladder", "a", "--html", "runs"], "directory"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_mistakes_are_one_line_a_failure_and_no_file(
    headway, export, place, capsys, arguments, message
):
    before = sorted(place.rglob("*"))
    code, served = headway(*arguments)
    assert code in (1, 2)
    assert served is None
    error = capsys.readouterr().err
    assert error.startswith("headway: ")
    assert error.count("\n") == 1
    assert message.lower() in error.lower()
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", ""], "the text must have 1 to 32 tokens"),
        (["tiny", "It was" * 9], "the text must have 1 to 32 tokens"),
        (["--ladder", ""], "must have 1 to 32 words"),
        (["--ladder", "--port", "80"], "1024 to 65535"),
    ],
)
def test_mistakes_end_the_server_before_it_begins(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail("it opens"))
    monkeypatch.setattr(sys, "argv", ["headway", "explore", *arguments])
    with pytest.raises(SystemExit, match="1"):
        main.main()
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
