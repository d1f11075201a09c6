"""The rules of the architecture: which package may import which, and what is not allowed."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from headway.ladder.rungs import LADDER

SRC = Path(__file__).parents[1] / "src" / "headway"
FILES = {file.relative_to(SRC).as_posix(): file.read_text() for file in SRC.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in FILES.items()}

# For each package (or module at the top), the packages that it may import.
BELOW = {
    "nearest": set(),
    "tracing": {"nearest"},
    "cache": set(),
    "extras": set(),
    "attention": {"cache", "nearest", "tracing"},
    "ladder": {"attention", "nearest", "tracing"},
    "models": {"attention", "ladder", "nearest", "tracing"},
    "data": {"cache", "extras"},
    "reference": set(),
    "training": {"attention", "cache", "data", "ladder", "models", "nearest"},
}
BELOW["torch"] = BELOW["jax"] = set(BELOW) - {"reference"}
BELOW["hf"] = set(BELOW) - {"reference"}
BELOW["engines"] = set(BELOW) - {"reference"}
BELOW["hf"] = set(BELOW) - {"reference"}
BELOW["explore"] = set(BELOW) - {"reference"}
BELOW["check"] = set(BELOW) - {"reference", "explore"}
# check: imports file.py:name; explore: reads trace files and shows matrices
BELOW["divergence"] = set(BELOW) - {"reference"}
BELOW["bench"] = set(BELOW) - {"reference", "explore", "divergence"}
# What the course needs of the other tools.
OF_TOOLS = {
    "explore.export": "the style sheets and scripts of the pages",
    "explore.local": "the web server",
    "explore.offline": "a page as one file",
    "check": "the doctor grades the exercises",
    "bench.pages": "the colours of curves",
}
BELOW["learn"] = {"cache", "data", "ladder", "nearest", "training"}
BELOW["learn"] |= {module.split(".")[0] for module in OF_TOOLS}
BELOW["plan"] = set(BELOW) - {"reference", "explore", "check", "divergence", "bench", "learn"}
BELOW["lab"] = set(BELOW) - {"reference", "explore", "check", "divergence", "plan"}
BELOW["cli"] = set(BELOW) - {"reference"}
BELOW["__main__"] = {"cli"}
ENGINE_FREE = ("tracing", "cache", "attention", "ladder", "models", "data")
ENGINE_FREE += ("training", "reference", "hf", "nearest")
# Models of transformers are PyTorch modules.
HF_WITH_TORCH = {
    f"hf/{name}.py" for name in ("watch", "hooks", "structure", "families", "situations")
}
HF_WITH_TORCH.add("hf/transformers_masks.py")


def package(name):
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
def test_imports_point_one_way(name):
    importing = package(name)
    for imported in imports(TREES[name]):
        parts = imported.split(".")
        if parts[0] == "headway" and len(parts) > 1:
            assert parts[1] in BELOW[importing] | {importing}, f"{name} imports {imported}"


def test_the_course_needs_little_of_other_tools():
    tools = tuple(f"headway.{module.split('.')[0]}." for module in OF_TOOLS)
    files = [name for name in FILES if package(name) == "learn"]
    used = {one + "." for name in files for one in imports(TREES[name]) if one.startswith(tools)}
    listed = {
        module: {one for one in used if one.startswith(f"headway.{module}.")} for module in OF_TOOLS
    }
    assert all(listed.values())
    assert used == set().union(*listed.values())


def test_every_package_has_a_rule():
    assert {package(name) for name in FILES} - {"__init__"} <= set(BELOW)


def engine_free(name):
    # Kernels use one engine, and in the explorer only the file `tracers` runs models.
    if name.startswith("attention/kernels/") or name in HF_WITH_TORCH:
        return False
    return package(name) in ENGINE_FREE or (package(name) == "explore" and "tracers" not in name)


@pytest.mark.parametrize("name", [name for name in FILES if engine_free(name)])
def test_engine_free_packages_name_no_engine(name):
    imported = {module.split(".")[0] for module in imports(TREES[name])}
    assert not imported & {"torch", "jax"}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.If) and package(name) != "tracing":
            names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            assert not names & {"torch", "jax"}, f"{name}:{node.lineno} asks for the engine"


@pytest.mark.parametrize("name", [name for name in FILES if package(name) == "reference"])
def test_the_reference_imports_only_numpy(name):
    known = {"numpy", "headway", "__future__", *sys.stdlib_module_names}
    assert {module.split(".")[0] for module in imports(TREES[name])} <= known


def test_nothing_dangerous():
    for name, tree in TREES.items():
        assert "pickle" not in {module.split(".")[0] for module in imports(tree)}, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load"), f"{name}:{node.lineno}"
            if isinstance(node, ast.keyword):
                assert node.arg != "weights_only", f"{name}:{node.value.lineno}"


def test_no_public_name_is_also_the_name_of_a_module():
    """Otherwise `headway.NAME` would be a module or a function, depending on what was imported."""
    (exported,) = (
        ast.literal_eval(node.value)
        for node in TREES["__init__.py"].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert not set(exported) & {package(name) for name in FILES}


# The only functions that may name several options of attention, with the reason. `cli` (its
# commands name flags) and `reference` (written separately) are not checked.
NAMES_OPTIONS = {
    (
        "attention/kernels/triton_flash.py",
        "_call",
    ): "custom operators of PyTorch cannot take a Spec",
    ("check/adapters.py", "call"): "it calls the attention of other libraries",
}


def test_only_spec_names_the_options_of_attention():
    from headway.attention.options import Options
    from headway.attention.spec import Spec

    options, functions = {*Spec._fields, *Options.__annotations__}, set()
    for name, tree in TREES.items():
        if package(name) in ("cli", "reference"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                arguments = node.args
                arguments = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                if len({argument.arg for argument in arguments} & options) > 1:
                    functions.add((name, getattr(node, "name", "lambda")))
    assert {*Options.__annotations__} - {*Spec._fields} == {"causal", "window"}
    assert functions == {*NAMES_OPTIONS}


def test_a_rung_has_at_most_120_lines():
    for name in LADDER:
        assert len(FILES[f"ladder/{name}.py"].splitlines()) <= 120, name


def loaded(code):
    """The modules that are imported after running the code in a new process."""
    process = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(process.stdout.split())


def test_importing_headway_loads_no_engine():
    modules = loaded("import headway; headway.attend; headway.trace; import headway.ladder.rungs")
    assert "numpy" in modules
    assert not modules & {"torch", "jax", "triton"}


def test_the_jax_engine_does_not_load_pytorch():
    modules = loaded("import headway.jax.engine")
    assert "jax" in modules
    assert "torch" not in modules


def test_help_loads_no_engine_and_takes_less_than_half_a_second():
    assert not loaded("import headway.cli.main") & {"torch", "jax", "numpy"}
    command = [Path(sys.executable).parent / "headway", "--help"]
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert all(command in output for command in ("ladder", "train", "generate"))
    assert min(seconds) < 0.5  # of the processor, because other tests run at the same time
