"""The commands as a person would use and misuse them, most of them in this process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from command import run
from headway.cli.train import suggestion
from headway.data.tokenizers import Tokenizer
from headway.ladder.rungs import LADDER
from headway.training.runs import Run

# On one worker, because the tests share a fixture that takes seconds.
pytestmark = pytest.mark.xdist_group("commands")

HEADWAY = str(Path(sys.executable).parent / "headway")
TEXT = "It was the best of times, it was the worst of times.\n" * 60
SIZES = {"steps": 4, "evaluate-every": 2, "width": 16, "layers": 1, "heads": 2, "context": 8}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
TINY += ["--tokenizer", "char"]


def headway(*arguments, cwd, **options):
    return run(cwd, *arguments, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text and a run that learnt from it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text(TEXT)
    done = headway("train", "text.txt", "--name", "tiny", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "a sample" in done.stdout
    assert "step 4/4" in done.stdout
    assert re.search(r"(adamw|muon) on cpu, (float32|bfloat16)", done.stdout)
    assert re.search(r"\d tokens/s in a step without evaluation; MFU \d+%: ", done.stdout)
    return folder


def test_a_run_leaves_its_files(place):
    run = place / "runs" / "tiny"
    assert sorted(f.name for f in run.iterdir()) == [
        *("checkpoints", "config.json", "log.jsonl", "tokenizer.json")
    ]
    kept = sorted(f.name for f in (run / "checkpoints").iterdir())
    assert kept == ["step-000000", "step-000004"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert [record["validation"] is not None for record in log] == [False, True, False, True]
    assert json.loads((run / "config.json").read_text())["model"]["width"] == 16


def test_writing_follows_its_seed(place):
    wrote = [
        headway("generate", "tiny", "It was", "--tokens", "60", "--seed", seed, cwd=place).stdout
        for seed in ("1", "1", "2")
    ]
    assert wrote[0].startswith("It was")
    assert len(wrote[0]) == len("It was") + 60 + 1
    assert wrote[0] == wrote[1] != wrote[2]


BAD = {
    "missing text": ("train nofile.txt", "text 'nofile.txt' not found"),
    "empty text": ("train empty.txt", "has no text"),
    "short text": ("train short.txt --tokenizer char", "too few for a context of 64"),
    "heads": ("train text.txt --heads 3", "heads must divide the width (got 3 and 128)"),
    "dots": ("train text.txt --name ../x", "invalid run name"),
    "option": ("train text.txt --stps 3", "Did you mean --steps?"),
    "verb": ("trian", 'Did you mean "train"?'),
    "kind": ("train --preset modrn", "modrn"),
    "recipe": ("train --recipe char-cup", "did you mean 'char-cpu'"),
    "corpus": ("train shakespear", "did you mean 'shakespeare'"),
    "tokenizer": ("train text.txt --tokenizer words", "unknown tokenizer 'words'"),
    "device": ("train text.txt --device cuda", "this machine has no cuda"),
    "resume nothing": ("train --resume tinny", "available runs: tiny"),
    "resume another text": ("train --resume tiny other.txt", "text cannot change"),
    "resume another batch": ("train --resume tiny --batch 3", "batch cannot change"),
    "resume under a name": ("train --resume tiny --name x", "remove --name, --recipe and --from"),
    "number": ("train text.txt --steps many", "many"),
    "rung": ("train text.txt --rung casual", "did you mean 'causal'"),
    "rung and preset": ("train text.txt --rung causal --preset modern", "remove one of the two"),
    "dropout": ("train text.txt --dropout 1.5", "dropout must be at least 0 and below 1 (got 1.5)"),
    "existing run": ("train text.txt --name tiny", "already exists; choose another --name"),
    "no run": ("generate tinny", "available runs: tiny"),
    "unseen": ("generate tiny ü", "does not know the characters 'ü'"),
    "empty prompt": ("generate tiny ''", "prompt is empty"),
    "top-p": ("generate tiny It --top-p 2", "top_p must be > 0"),
    "stop": ("generate tiny It --stop ''", "stop string must have"),
    "trace": ("trace tiny ''", "the text must have 1 to 8 tokens"),
    "trace too long": ("trace tiny itwasthebestoftimes", "the text must have 1 to 8 tokens"),
    "trace nowhere": ("trace tiny It -o no/where", "No such file"),
    "no runs": ("runs nowhere", "no runs in nowhere"),
    "no such run": ("info tinny", "available runs: tiny"),
    "temperature": ("generate tiny It --temperature -1", "temperature must be >= 0"),
    "seed": ("generate tiny It --seed -1", "seed must be >= 0 and < 2^32 (got -1)"),
    "ladder": ("ladder multi-head", "did you mean 'multihead'"),
    "no words": ("ladder causal --text ''", "at least one word"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_a_failure_and_no_file(place, line, message):
    (place / "empty.txt").write_text("")
    (place / "short.txt").write_text("too short")
    (place / "other.txt").write_text(TEXT)
    before = {f: f.stat().st_mtime_ns for f in place.rglob("*")}
    done = headway(*("" if word == "''" else word for word in line.split()), cwd=place)
    assert done.returncode not in (0, 130)
    assert done.stderr.startswith("headway: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert {f: f.stat().st_mtime_ns for f in place.rglob("*")} == before


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_briefly_unless_told_otherwise(own):
    """Before PyTorch is imported: in another process."""
    code = "import atexit, os, sys; from headway.cli.main import main; atexit.register(lambda: "
    code += "print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))); main()"
    environment = {k: v for k, v in os.environ.items() if "_SPINCOUNT" not in k} | own
    command = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    default = None if "OMP_WAIT_POLICY" in own else "1000"
    assert done.stdout.split()[-2:] == ["False", str(own.get("GOMP_SPINCOUNT", default))]


def test_the_ladder_shows_all_rungs_and_your_own_words(place):
    complete = headway("ladder", cwd=place).stdout
    places = [complete.find(f"─ {name} ─") for name in LADDER]
    assert places == sorted(places)
    assert min(places) > 0
    assert complete.count("╭─ ") == 9
    one = headway("ladder", "causal", "--text", "some wörds of mine", cwd=place).stdout
    assert all(word in one for word in ("some", "wörds", "of", "mine"))
    assert one.count("╭─ ") == 1


def training(place, name, *more, steps="40"):
    """A run of some seconds, in the background."""
    command = [HEADWAY, "train", "text.txt", "--name", name, *TINY, "--dropout", "0.2", *more]
    command[command.index("--steps") + 1] = steps
    return subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_steps(run, count):
    for _ in range(600):
        log = run / "log.jsonl"
        if log.exists() and log.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no step was logged")


def content(checkpoint):
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def told(run):
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_ctrl_c_ends_the_step_and_resuming_gives_the_uninterrupted_run(place):
    words = ["train", "text.txt", *TINY, "--dropout", "0.2", "--micro-batch", "5"]
    words[words.index("--steps") + 1] = "40"
    assert headway(*words, "--name", "complete", cwd=place).returncode == 0
    run = place / "runs" / "stopped"
    log = run / "log.jsonl"
    stopped = headway(
        *(*words, "--name", "stopped"),
        cwd=place,
        interrupt=lambda: log.exists() and log.read_text().count("\n") >= 2,
    )
    assert stopped.returncode == 130, stopped.stderr
    done = len(told(run))
    assert f"stopped after step {done}; the checkpoint is" in stopped.stdout
    assert "headway train --resume stopped" in stopped.stdout
    assert (run / "checkpoints" / f"step-{done:06d}").is_dir()
    resumed = headway("train", "--resume", "stopped", cwd=place)
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {done}" in resumed.stdout
    end = "checkpoints/step-000040"
    assert content(run / end) == content(place / "runs" / "complete" / end)
    assert told(run) == told(place / "runs" / "complete")


@pytest.mark.slow  # three trainings; Ctrl-C and a damaged checkpoint go the same way
def test_kill_9_and_resume_is_the_run_that_nobody_killed(place):
    every = ("--save-every", "7")
    with training(place, "unkilled", *every, steps="200") as process:
        assert process.wait(120) == 0
    run = place / "runs" / "killed"
    with training(place, "killed", *every, steps="200") as process:
        wait_for_steps(run, 12)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    (run / "log.jsonl").open("a").write('{"step": 19, "cut of')
    goes_on = headway("train", "--resume", "killed", cwd=place)
    assert goes_on.returncode == 0, goes_on.stderr
    assert "from step" in goes_on.stdout
    end = "checkpoints/step-000200"
    assert content(run / end) == content(place / "runs" / "unkilled" / end)
    assert told(run) == told(place / "runs" / "unkilled")


def test_the_micro_batch_of_a_resumed_run_may_change(place):
    headway("train", "text.txt", "--name", "large", *TINY, cwd=place)
    done = headway(*["train", "--resume", "large", "--micro-batch", "3", "--steps", "6"], cwd=place)
    assert done.returncode == 0, done.stderr
    config = json.loads((place / "runs" / "large" / "config.json").read_text())
    assert config["training"]["micro_batch"] == 3


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate\nmore lines")]
)
def test_out_of_memory_is_one_line(place, error, monkeypatch):
    def no_memory(*_, **__):
        raise error

    monkeypatch.setattr("headway.torch.engine.generate", no_memory)
    refused(place, "out of memory; a smaller model", "generate", "tiny", "It")
    monkeypatch.setattr("headway.cli.main.is_exhausted", lambda error: False)
    with pytest.raises(type(error)):
        headway("generate", "tiny", "It", cwd=place)


@pytest.fixture
def half(place):
    """A run that was stopped, with two checkpoints."""
    run = place / "runs" / "half"
    if not run.exists():
        with training(place, "half", "--save-every", "1", steps="100000") as process:
            wait_for_steps(run, 3)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    return run


def refused(place, message, *arguments):
    done = headway(*arguments, cwd=place)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1
    assert message in done.stderr, done.stderr


def test_resume_refuses_what_has_changed_and_names_it(place, half):
    text, config, tokenizer = place / "text.txt", half / "config.json", half / "tokenizer.json"
    for file, change, message in (
        (text, lambda old: old + "more", "text_sha256 has changed"),
        (tokenizer, lambda old: old.replace('"a"', '"ä"'), "tokenizer_sha256 has changed"),
        (config, lambda old: old.replace('"batch": 16', '"batch": 17'), "batch has changed"),
        (config, lambda old: old.replace('"batch"', '"batches"'), "did you mean 'batch'"),
    ):
        before = file.read_text()
        assert change(before) != before
        file.write_text(change(before))
        refused(place, message, "train", "--resume", "half")
        file.write_text(before)


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(place, half):
    before, last = sorted((half / "checkpoints").iterdir())
    file = last / "model.safetensors"
    complete = file.read_bytes()
    file.write_bytes(complete[:-9])
    for verb in ("generate half", "train --resume half", "trace half It"):
        refused(place, f"remove the folder {last.name} to resume from {before.name}", *verb.split())
    message = headway("info", "half", cwd=place).stdout
    assert f"{before.name} verified" in message
    assert "is damaged" in message
    file.write_bytes(complete)


def test_a_folder_that_may_not_be_written(place):
    """A file where the folder should be: root may write everywhere else."""
    (place / "taken").write_text("")
    for more in ("--runs taken", "--runs taken/deeper"):
        refused(place, "taken", "train", "text.txt", "--name", "x", *TINY, *more.split())


def test_a_full_disk_loses_nothing(place, half):
    """With the largest file that the process may write as the end of the disk."""
    kept = {p.name: content(p) for p in (half / "checkpoints").iterdir()}
    config = half / "config.json"
    full = f"ulimit -f 16; trap '' XFSZ; exec {HEADWAY} train --resume half"
    done = subprocess.run(["bash", "-c", full], cwd=place, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("headway: cannot write the checkpoint ")
    assert "the earlier checkpoints are intact" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {p.name: content(p) for p in (half / "checkpoints").iterdir()} == kept
    assert config.exists()


def test_several_prompts_and_a_stop(place):
    message = headway("generate", "tiny", "It was", "best", "--tokens", "9", cwd=place).stdout
    alone = [
        headway("generate", "tiny", p, "--tokens", "9", cwd=place).stdout
        for p in ("It was", "best")
    ]
    assert message == f"── 1 ──\n{alone[0]}── 2 ──\n{alone[1]}"
    stop = alone[0][len("It was") + 3 : len("It was") + 5]
    cut = headway("generate", "tiny", "It was", "--tokens", "9", "--stop", stop, cwd=place).stdout
    assert cut == "It was" + alone[0][len("It was") :].split(stop)[0] + "\n"


def test_a_prompt_longer_than_the_context_is_said_plainly(place):
    done = headway("generate", "tiny", "It was the best of times", cwd=place)
    assert done.returncode == 0
    assert "has 24 tokens; the model sees 8, so it reads the last 8 only" in done.stderr


def test_runs_and_info_tell_what_there_is(place):
    message = headway("runs", cwd=place).stdout
    assert "tiny" in message
    assert "4/4" in message
    message = headway("info", "tiny", cwd=place).stdout
    for word in ("text_sha256", "learning_rate", "vocabulary", "step-000004 verified"):
        assert word in message


def test_trace_writes_a_file_that_is_the_models_own(place):
    from headway.explore import trace_file

    done = headway("trace", "tiny", "It was", "-o", "t.safetensors", cwd=place)
    assert done.returncode == 0, done.stderr
    tensors, manifest = trace_file.load(place / "t.safetensors")
    assert [token["display"] for token in manifest["tokens"]] == list("It·was")
    assert tensors["blocks.0.attention.weights"].shape == (1, 2, 6, 6)
    assert manifest["attentions"]["blocks.0.attention"]["scale"] == 8**-0.5
    assert (manifest["title"], manifest["step"]) == ("tiny", 4)


def test_any_tokenizer_json_will_do(place):
    more = ["--tokenizer", "runs/tiny/tokenizer.json", "--name", "own"]
    done = headway("train", "text.txt", *TINY[:-2], *more, cwd=place)
    assert done.returncode == 0, done.stderr
    one, other = ((place / f"runs/{run}/tokenizer.json").read_text() for run in ("tiny", "own"))
    assert one == other


@pytest.fixture(scope="module")
def words(place):
    """A run whose tokens are words with a space before them; the post-processor adds one."""
    names = [f"\u2581{word}" for word in sorted(set(TEXT.split()))]
    backend = Backend(models.WordLevel({name: i for i, name in enumerate(names)}))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("It $A", None, [("It", 0)])
    backend.save(str(place / "words.json"))
    tiny = [*TINY[:-2], "--tokenizer", "words.json", "--name", "words"]
    done = headway("train", "text.txt", *tiny, cwd=place)
    assert done.returncode == 0, done.stderr
    return Run.open(place / "runs" / "words")


def test_the_first_generated_word_keeps_its_space(place, words):
    text = headway("generate", "words", "It was", "--tokens", "5", cwd=place).stdout
    written = text.removeprefix("It was")
    assert written != text
    assert re.fullmatch(r"(?: [A-Za-z]+[.,]?){5}\n", written)


def test_the_prompt_of_a_run_has_no_special_tokens(words):
    tokenizer = words.tokenizer
    assert tokenizer.prompt("It was").tolist() == tokenizer.encode("It was").tolist()
    assert len(tokenizer.prompt("It was")) == 2
    assert tokenizer.bos is None


def test_generation_ends_at_the_end_of_a_text(place, monkeypatch):
    def ending(self):
        made = Tokenizer.characters(TEXT)
        made.bos, made.eos = int(made.encode("I")[0]), ends
        return made

    monkeypatch.setattr(Run, "tokenizer", property(ending))
    ends = frozenset(range(99))
    assert headway("generate", "tiny", "It", cwd=place).stdout == "It\n"
    assert headway("generate", "tiny", cwd=place).stdout == "\n"
    assert headway("generate", "tiny", "It", "was", cwd=place).stdout.split() == [
        *("──", "1", "──", "It", "──", "2", "──", "was")
    ]
    ends = frozenset()
    after_bos = headway("generate", "tiny", cwd=place).stdout
    assert "I" + after_bos == headway("generate", "tiny", "I", cwd=place).stdout


def test_another_tokenizer_in_a_run_is_named(place):
    file = place / "runs" / "tiny" / "tokenizer.json"
    before = file.read_text()
    Tokenizer.characters(TEXT.replace("b", "c")).save(file)
    refused(place, "tokenizer_sha256 has changed", "generate", "tiny", "It was")
    file.write_text(before)
    assert headway("generate", "tiny", "It", "--tokens", "1", cwd=place).returncode == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好，我们去散步。\n" * 9, "今天天气很好"),
        ("今天天气很好我们去散步" * 9, "今天天气很好我们去散步今天天气很好我们去"),
        ("-7 12 34\n" * 9, "12"),
        ("בְּרֵאשִׁית בָּרָא\n" * 9, "אש"),
        ("It was the best-known of times, " * 3, "known"),
        ("\n \n", "\n \n"),
    ],
)
def test_the_suggested_prompt_can_be_encoded(text, expected):
    for tokenizer in (Tokenizer.characters(text), Tokenizer.utf8_bytes()):
        prompt = suggestion(tokenizer, tokenizer.encode(text))
        assert len(tokenizer.encode(prompt)) > 0
    assert suggestion(Tokenizer.characters(text), Tokenizer.characters(text).encode(text)) == (
        expected
    )


def test_curves_for_tensorboard(place):
    done = headway("train", "text.txt", *TINY, "--name", "curves", "--tensorboard", cwd=place)
    assert done.returncode == 0, done.stderr
    (events,) = (place / "runs" / "curves" / "tensorboard").iterdir()
    assert b"gradient_norm" in events.read_bytes()
