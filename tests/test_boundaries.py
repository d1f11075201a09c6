"""The rules of the house: which room may import which, and what stays out."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.ladder.rungs import LADDER

SRC = Path(__file__).parents[1] / "src" / "headway"
FILES = {file.relative_to(SRC).as_posix(): file.read_text() for file in SRC.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in FILES.items()}

# Each room may use those to the right of it, and nothing to the left.
BELOW = {
    "tracing": set(),
    "cache": set(),
    "nearest": set(),
    "extras": set(),
    "attention": {"cache", "tracing"},
    "ladder": {"attention", "tracing"},
    "models": {"attention", "ladder", "nearest", "tracing"},
    "hf": {"attention"},
    "data": {"cache"},
    "reference": set(),
    "training": {"attention", "cache", "data", "ladder", "models", "nearest"},
}
BELOW["torch"] = BELOW["jax"] = set(BELOW) - {"reference"}
BELOW["engines"] = set(BELOW) - {"reference"}
BELOW["explore"] = set(BELOW) - {"reference"}
BELOW["check"] = set(BELOW) - {"reference", "explore"}
BELOW["bench"] = set(BELOW) - {"reference", "explore"}
BELOW["lab"] = set(BELOW) - {"reference", "explore", "check"}
BELOW["cli"] = set(BELOW) - {"reference"}
ENGINE_FREE = ("tracing", "cache", "attention", "ladder", "models", "data")
ENGINE_FREE += ("training", "reference", "hf", "nearest")


def room(name):
    return name.split("/")[0].removesuffix(".py")


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__.py"])
def test_arrows_point_one_way(name):
    here = room(name)
    for imported in imports(TREES[name]):
        parts = imported.split(".")
        if parts[0] == "headway" and len(parts) > 1:
            assert parts[1] in BELOW[here] | {here}, f"{name} imports {imported}"


def test_every_room_is_known():
    assert {room(name) for name in FILES} - {"__init__"} <= set(BELOW)


def engine_free(name):
    # Kernels are of an engine, and of the explorer one file runs models.
    if name.startswith("attention/kernels/"):
        return False
    return room(name) in ENGINE_FREE or (room(name) == "explore" and "subjects" not in name)


@pytest.mark.parametrize("name", [name for name in FILES if engine_free(name)])
def test_engine_free_rooms_name_no_engine(name):
    imported = {each.split(".")[0] for each in imports(TREES[name])}
    assert not imported & {"torch", "jax"}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.If) and room(name) != "tracing":
            names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            assert not names & {"torch", "jax"}, f"{name}:{node.lineno} asks for the engine"


@pytest.mark.parametrize("name", [name for name in FILES if room(name) == "reference"])
def test_the_reference_imports_numpy_alone(name):
    known = {"numpy", "headway", "__future__", *sys.stdlib_module_names}
    assert {each.split(".")[0] for each in imports(TREES[name])} <= known


def test_nothing_dangerous():
    for name, tree in TREES.items():
        assert "pickle" not in {each.split(".")[0] for each in imports(tree)}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load"), f"{name}:{node.lineno}"
            if isinstance(node, ast.keyword):
                assert node.arg != "weights_only", f"{name}:{node.value.lineno}"


def test_no_public_function_has_the_name_of_a_module_beside_it():
    """So that `headway.attention.formula` is never both. Verbs of the CLI are files by design, and
    a part may be the reason for its file's name (`parts/attention.py` holds `attention`)."""
    (exported,) = (
        ast.literal_eval(node.value)
        for node in TREES["__init__.py"].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert not set(exported) & {room(name) for name in FILES}


# Functions that name several options of attention, and why. The commands of `cli` name flags, and
# the reference is written without the rest.
NAMES_OPTIONS = {
    ("attention/kernels/triton_flash.py", "_call"): "the operators of PyTorch take no Spec",
    ("check/adapters.py", "call"): "it calls the attention of another library",
}


def test_only_spec_names_the_options_of_attention():
    from headway.attention.options import Options
    from headway.attention.spec import Spec

    options, found = {*Spec._fields, *Options.__annotations__}, set()
    for name, tree in TREES.items():
        if room(name) in ("cli", "reference"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                arguments = node.args
                named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                if len({each.arg for each in named} & options) > 1:
                    found.add((name, getattr(node, "name", "lambda")))
    assert {*Options.__annotations__} - {*Spec._fields} == {"causal", "window"}
    assert found == {*NAMES_OPTIONS}


def test_a_rung_fits_on_a_page_or_two():
    for name in LADDER:
        assert len(FILES[f"ladder/{name}.py"].splitlines()) <= 120, name


def loaded(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_headway_loads_no_engine():
    found = loaded("import headway; headway.attend; headway.trace; import headway.ladder.rungs")
    assert "numpy" in found
    assert not found & {"torch", "jax", "triton"}


def test_the_jax_engine_loads_no_pytorch():
    found = loaded("import headway.jax.engine")
    assert "jax" in found
    assert "torch" not in found


def test_help_loads_no_engine_and_answers_at_once():
    assert not loaded("import headway.cli.main") & {"torch", "jax", "numpy"}
    command = [Path(sys.executable).parent / "headway", "--help"]
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    assert all(verb in said for verb in ("ladder", "train", "generate"))
    assert min(seconds) < 0.5  # the best of five, for the tests share two cores
