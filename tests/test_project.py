"""What holds the project together: pins, the direction of imports, entry points, environment variables."""

import ast
import graphlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from calmlflow.console import script_command

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("calmlflow", "entrypoints") for path in (ROOT / folder).rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

HEAVY = {"tensorflow", "keras", "mlflow", "pandas", "sklearn", "matplotlib"}
# Arrows run from a later floor to an earlier one, and never along a floor.
FLOORS = (
    {"__init__", "errors"},
    {"settings", "hst"},
    {"console"},
    {"storage"},
    {"jobs", "networks", "results", "predictor"},
    {"registry"},
    {"runs"},
    {"server"},
    {"cli"},
)
STEPS = len(FLOORS)


def floor_of(part: str) -> int:
    return next((number for number, floor in enumerate(FLOORS) if part in floor), STEPS + (part == "entrypoints"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)


# -- Imports --------------------------------------------------------------------------------------------------------


def imports_of(source: str, package: str = "") -> Iterator[str]:
    """Every dotted name that a module imports, wherever in the file, ``from a import b`` as ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def module_imports(path: Path) -> set[str]:
    return set(imports_of(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts)))


def part_of(dotted: str) -> str | None:
    """The part of the house that a module belongs to; None outside the project."""
    first, _, rest = dotted.partition(".")
    if first == "entrypoints":
        return first
    part = rest.partition(".")[0]
    exists = part and ((ROOT / "calmlflow" / part).is_dir() or (ROOT / "calmlflow" / f"{part}.py").is_file())
    return part if first == "calmlflow" and exists else None


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def home_of(path: Path) -> str | None:
    return part_of(dotted_name(path))


def test_imports_are_found_in_every_form():
    source = """
import a.b, c as d
from e.f import g
def late():
    from . import h
    from .i import j
    from ..k import l
    importlib.import_module("m")
"""
    assert set(imports_of(source, "calmlflow.jobs")) == {
        *("a.b", "c", "e.f.g", "calmlflow.jobs.h", "calmlflow.jobs.i.j", "calmlflow.k.l", "m")
    }


@each_source
def test_arrows_run_downward(path):
    part = home_of(path)
    floor = floor_of(part)
    used = {part_of(module) for module in module_imports(path)} - {None, part}
    upward = {other for other in used if floor_of(other) > floor or floor_of(other) == floor}
    assert not upward, f"{name_of(path)} imports {sorted(upward)}, which stand beside or above it"


def test_every_part_that_the_floors_name_exists():
    assert {home_of(path) for path in SOURCES} >= {"entrypoints"}.union(*FLOORS)


def test_no_module_imports_itself_in_a_circle():
    modules = {dotted_name(path).removesuffix(".__init__"): path for path in SOURCES}
    imports = {name: module_imports(path) for name, path in modules.items()}
    graph = {
        # An imported name is a module, or something in one.
        name: {module for used in names for module in (used, used.rpartition(".")[0]) if module in modules}
        for name, names in imports.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("settings", HEAVY),
        ("console", HEAVY),
        ("networks", {"mlflow"}),
        ("results", {"mlflow", "tensorflow", "keras"}),
    ],
)
def test_what_a_part_never_imports(part, never):
    paths = [path for path in SOURCES if home_of(path) == part]
    assert paths
    found = {name_of(path): sorted({name.split(".")[0] for name in module_imports(path)} & never) for path in paths}
    assert not {path: names for path, names in found.items() if names}


def test_hst_imports_the_standard_library_numpy_and_itself():
    for path in (ROOT / "calmlflow" / "hst").rglob("*.py"):
        outside = {
            name for name in module_imports(path) if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy"}
        }
        assert all(name.startswith(("calmlflow.hst.", "calmlflow.errors.")) for name in outside), name_of(path)


@pytest.mark.parametrize("module", ["calmlflow.predictor", "calmlflow.predictor.aws_lambda", "calmlflow.settings"])
def test_the_predictor_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# -- Nothing is unpickled -------------------------------------------------------------------------------------------

PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLING_NAMES = {"read_pickle", "to_pickle", "unsafe_load", "UnsafeLoader", "enable_unsafe_deserialization"}
SAFE_ARGUMENTS = {"allow_pickle": False, "safe_mode": True}


def picklings(source: str) -> list[str]:
    """Everything in a module that could run what a file says."""
    found = [name for name in imports_of(source) if PICKLERS & set(name.split("."))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in SAFE_ARGUMENTS:
            if getattr(node.value, "value", None) is not SAFE_ARGUMENTS[node.arg]:
                found.append(ast.unparse(node))
        elif (isinstance(node, ast.Attribute) and node.attr in PICKLING_NAMES) or (
            isinstance(node, ast.Attribute) and ast.unparse(node) in ("yaml.load", "yaml.full_load")
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "import sklearn.externals.joblib",
        "def late():\n    import cloudpickle as safe",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "keras.saving.load_model(path, safe_mode=False)",
    ],
)
def test_the_search_for_pickles_finds_them(source):
    assert picklings(source)


def test_the_search_for_pickles_lets_the_rest_pass():
    assert not picklings("import json\nnp.load(path, allow_pickle=False)\nyaml.safe_load(text)\njson.load(file)")


@each_source
def test_nothing_is_unpickled(path):
    assert not picklings(path.read_text())


# -- Files ----------------------------------------------------------------------------------------------------------


@each_source
def test_a_file_holds_one_thing(path):
    assert len(path.read_text().splitlines()) <= 320, f"{name_of(path)} has outgrown a sitting; it holds two things"


# -- Pins -----------------------------------------------------------------------------------------------------------


def conda_environment() -> tuple[list[str], list[str]]:
    """The conda packages and the pip packages of conda.yaml."""
    dependencies = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    pip = [package for entry in dependencies if isinstance(entry, dict) for package in entry["pip"]]
    return [entry for entry in dependencies if isinstance(entry, str)], pip


def test_conda_and_pyproject_agree_on_every_pin():
    _, pip = conda_environment()
    pins = PYPROJECT["project"]["dependencies"]
    assert sorted(pip) == sorted(pins), f"differ: {sorted(set(pip) ^ set(pins))}"


def test_every_pin_is_exact():
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    pins = PYPROJECT["project"]["dependencies"] + [pin for extra in extras for pin in extra]
    loose = [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)]
    assert not loose
    names = [pin.partition("==")[0] for pin in pins]
    assert len(names) == len(set(names))


def test_one_version_of_python_everywhere():
    conda, _ = conda_environment()
    python = next(entry for entry in conda if entry.startswith("python=")).removeprefix("python=")
    major, minor = python.split(".")
    assert PYPROJECT["project"]["requires-python"] == f">={python},<{major}.{int(minor) + 1}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == python
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.findall(r'python-version: "(.*)"', workflow) == [python]


# -- MLproject ------------------------------------------------------------------------------------------------------


def entry_points() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


SCRIPTS = sorted(path.stem for path in (ROOT / "entrypoints").glob("*.py") if path.stem != "__init__")


def script_options(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, typer.core.TyperOption]:
    """What typer makes of the command that a script runs: option, by the name of the parameter."""
    monkeypatch.syspath_prepend(ROOT)
    script = importlib.import_module(f"entrypoints.{name}")
    (command,) = (found for found in vars(script).values() if callable(found) and found is not script.script)
    return {option.name: option for option in script_command(command).params}


def same_value(one: object, other: object) -> bool:
    """Equal as text, case aside (MLproject says true, Python says True), or equal as numbers (1e-4 and 0.0001)."""
    if str(one).lower() == str(other).lower():
        return True
    try:
        return float(str(one)) == float(str(other))
    except ValueError:
        return False


def test_every_script_is_an_entry_point_and_the_other_way_round():
    assert SCRIPTS
    assert sorted(entry_points()) == SCRIPTS


def test_mlproject_runs_in_the_pinned_environment():
    assert yaml.safe_load((ROOT / "MLproject").read_text())["conda_env"] == "conda.yaml"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_of_an_entry_point_passes_every_parameter(name, monkeypatch):
    entry = entry_points()[name]
    words = shlex.split(entry["command"])
    assert words[:3] == ["python", "-m", f"entrypoints.{name}"]
    options = script_options(name, monkeypatch)
    passed = dict(zip(words[3::2], words[4::2], strict=True))
    assert passed == {option.opts[0]: f"{{{parameter}}}" for parameter, option in options.items()}
    assert set(entry.get("parameters", {})) == set(options)


@pytest.mark.parametrize("name", SCRIPTS)
def test_defaults_of_an_entry_point_are_those_of_its_script(name, monkeypatch):
    parameters = entry_points()[name].get("parameters", {})
    for parameter, option in script_options(name, monkeypatch).items():
        # MLproject may give a type alone, which makes a parameter required.
        declared = parameters[parameter] if isinstance(parameters[parameter], dict) else {}
        assert ("default" in declared) != option.required, parameter
        if not option.required:
            assert same_value(declared["default"], option.default), parameter


# -- Environment variables, make targets ----------------------------------------------------------------------------


def variables_in(*paths: Path) -> set[str]:
    return {name for path in paths for name in re.findall(r"CALMLFLOW_[A-Z0-9_]*[A-Z0-9]", path.read_text())}


def test_every_environment_variable_is_listed_in_settings_and_documented():
    others = [path for folder in ("benchmarks", "deploy") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path for path in others if path.suffix in ("", ".py", ".sh", ".yaml", ".yml", ".md")]
    settings = variables_in(ROOT / "calmlflow" / "settings.py")
    used = variables_in(*SOURCES, *texts, ROOT / "Makefile", ROOT / "MLproject", ROOT / ".ci" / "run")
    assert used == settings
    assert variables_in(ROOT / "README.md", *(ROOT / "docs").glob("*.md")) == settings


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml"])
def test_every_make_target_that_is_named_exists(file):
    named = set(re.findall(r"(?:^|run:|`) *make ([a-z-]+)", (ROOT / file).read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_the_script_of_the_ci_can_be_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
