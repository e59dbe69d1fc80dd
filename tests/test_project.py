"""The rules of the house: arrows between packages, declared imports, pins, entry points, variables, prose."""

import ast
import functools
import graphlib
import importlib
import importlib.metadata
import os
import re
import shlex
import shutil
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

HEAVY = {"tensorflow", "keras", "mlflow", "pandas", "sklearn", "matplotlib", "pyarrow"}
# Arrows run from a later floor to an earlier one, and never along a floor.
FLOORS = (
    {"__init__", "errors"},
    {"settings", "hst"},
    {"console"},
    {"storage"},
    {"jobs", "networks", "results", "predictor", "server"},
    {"registry"},
    {"runs"},
    {"cli"},
    {"entrypoints", "__main__"},
)
FLOOR_OF = {part: number for number, floor in enumerate(FLOORS) for part in floor}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


@functools.cache
def module_imports(path: Path) -> frozenset[str]:
    return frozenset(imports_of(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts)))


def outside_imports(path: Path) -> set[str]:
    """The libraries that a module imports."""
    used = {name.partition(".")[0] for name in module_imports(path)}
    return used - sys.stdlib_module_names - {"calmlflow", "entrypoints"}


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def part_of(dotted: str) -> str | None:
    """The part of the house that a module belongs to; None outside the project."""
    first, _, rest = dotted.partition(".")
    if first != "calmlflow":
        return first if first == "entrypoints" else None
    part = rest.partition(".")[0]
    return part if part in FLOOR_OF else "__init__"


def part_imports(path: Path) -> set[str]:
    """The other parts of the house that a module imports."""
    return {part for name in module_imports(path) if (part := part_of(name))} - {part_of(dotted_name(path))}


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


def test_the_root_holds_these_files_and_the_packages_of_the_floors():
    assert {part_of(dotted_name(path)) for path in SOURCES} == set(FLOOR_OF)
    files = {path.stem for path in (ROOT / "calmlflow").glob("*.py")}
    assert files == {"__init__", "__main__", "console", "errors", "settings"}


def test_arrows_run_downward():
    upward = [
        f"{name_of(path)} imports {part}"
        for path in SOURCES
        for part in part_imports(path)
        if FLOOR_OF[part] >= FLOOR_OF[part_of(dotted_name(path))]
    ]
    assert not upward


def test_only_the_command_reaches_the_server():
    reaching = {part_of(dotted_name(path)) for path in SOURCES if "server" in part_imports(path)}
    assert reaching == {"cli"}


def test_no_module_imports_itself_in_a_circle():
    modules = {dotted_name(path).removesuffix(".__init__"): path for path in SOURCES}
    graph = {
        # An imported name is a module, or something in one.
        name: {module for used in module_imports(path) for module in (used, used.rpartition(".")[0])} & set(modules)
        for name, path in modules.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("settings", HEAVY),
        ("console", HEAVY),
        ("jobs", {"mlflow"}),
        ("networks", {"mlflow"}),
        ("results", {"mlflow", "tensorflow", "keras"}),
        ("predictor", {"tensorflow", "keras"}),
        ("storage", {"mlflow"}),
        ("cli", {"mlflow"}),
    ],
)
def test_what_a_part_never_imports(part, never):
    paths = [path for path in SOURCES if part_of(dotted_name(path)) == part]
    assert paths
    found = {name_of(path): sorted(outside_imports(path) & never) for path in paths}
    assert not {path: names for path, names in found.items() if names}


def test_hst_imports_the_standard_library_numpy_and_errors():
    for path in (ROOT / "calmlflow" / "hst").rglob("*.py"):
        # An operator's own ladder is YAML; without one nothing is loaded, see the test below.
        assert outside_imports(path) <= {"numpy", *(["yaml"] if path.stem == "ladder" else [])}, name_of(path)
        assert part_imports(path) <= {"errors"}, name_of(path)


def test_the_predictor_and_the_help_of_commands_load_nothing_heavy():
    modules = ("predictor", "predictor.aws_lambda", "settings", "cli.app", "cli.training")
    imports = "; ".join(f"import calmlflow.{name}" for name in modules)
    code = f"{imports}; import sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_every_import_is_declared():
    project = PYPROJECT["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["distributed"]]
    pins = {pin.partition("==")[0] for pin in declared}
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        name: distributions.get(name, [])
        for name in set().union(*map(outside_imports, SOURCES))
        if not pins & {re.sub("[._]", "-", found.lower()) for found in distributions.get(name, [])}
    }
    assert not undeclared


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


def test_nothing_is_unpickled():
    assert not picklings("import json\nnp.load(path, allow_pickle=False)\nyaml.safe_load(text)\njson.load(file)")
    found = {name_of(path): picklings(path.read_text()) for path in SOURCES}
    assert not {path: names for path, names in found.items() if names}


# -- Files ----------------------------------------------------------------------------------------------------------


def test_a_file_holds_one_thing_and_is_named_for_it():
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = {name_of(path): lines for path in files if (lines := len(path.read_text().splitlines())) > 600}
    assert not long
    vague = re.compile(r"(^|_)(parts|items|helpers|utils|requests|members|misc|common_\w+)$")
    assert not [name_of(path) for path in files if vague.search(path.stem)]


VAGUE = re.compile(r"(What|Where|How|When|Who|Whether)\b")


def test_a_module_says_in_one_line_what_it_does():
    wrong = {}
    for path in (ROOT / "calmlflow").rglob("*.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if not text or "\n" in text or VAGUE.match(text):
            wrong[name_of(path)] = text.partition("\n")[0]
    for path in (file for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")):
        if VAGUE.match(text := ast.get_docstring(ast.parse(path.read_text())) or ""):
            wrong[name_of(path)] = text.partition("\n")[0]
    assert not wrong


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


def test_the_oldest_python_is_the_one_that_is_checked_and_run():
    conda, _ = conda_environment()
    python = next(entry for entry in conda if entry.startswith("python=")).removeprefix("python=")
    assert PYPROJECT["project"]["requires-python"] == f">={python},<3.14"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == python
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{python.replace('.', '')}"


@pytest.mark.parametrize(
    "lock, extras", [("requirements.lock", ["local"]), ("requirements-test.lock", ["local", "distributed", "test"])]
)
def test_a_lock_agrees_with_pyproject_and_names_no_address(lock, extras):
    text = (ROOT / lock).read_text()
    locked = re.findall(r"^([a-z0-9-]+==[0-9][^ ]*) ", text, re.MULTILINE)
    project = PYPROJECT["project"]
    pins = {*project["dependencies"], *(pin for extra in extras for pin in project["optional-dependencies"][extra])}
    assert pins <= set(locked), f"run `make lock`: {sorted(pins - set(locked))}"
    assert not re.search(r"https?:|file:|--|@|/", re.sub(r"--hash=sha256:[0-9a-f]{64}", "", text))


# -- MLproject ------------------------------------------------------------------------------------------------------

MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
SCRIPTS = sorted(path.stem for path in (ROOT / "entrypoints").glob("*.py") if path.stem != "__init__")


def script_options(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, typer.core.TyperOption]:
    """Options of the command that a script runs, by the name of the parameter."""
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
    assert sorted(MLPROJECT["entry_points"]) == SCRIPTS
    assert MLPROJECT["conda_env"] == "conda.yaml"


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_entry_point_agrees_with_the_command_of_its_script(name, monkeypatch):
    entry, options = MLPROJECT["entry_points"][name], script_options(name, monkeypatch)
    words = shlex.split(entry["command"])
    assert words[:3] == ["python", "-m", f"entrypoints.{name}"]
    passed = dict(zip(words[3::2], words[4::2], strict=True))
    assert passed == {option.opts[0]: f"{{{parameter}}}" for parameter, option in options.items()}
    assert set(entry["parameters"]) == set(options)
    for parameter, option in options.items():
        assert ("default" in entry["parameters"][parameter]) != option.required, parameter
        if not option.required:
            assert same_value(entry["parameters"][parameter]["default"], option.default), parameter


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


def test_make_run_works_in_a_folder_with_a_blank(tmp_path):
    folder = tmp_path / "a b"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    # In place of the installed programs: each says where it is and what it was asked for.
    for name in ("calmlflow", "mlflow"):
        (programs / name).write_text(f'#!/bin/sh\necho "echo {name} $#" | tee -a "$CALMLFLOW_HOME/../asked"\n')
        (programs / name).chmod(0o755)
    for name in ("bin/uv", "installed"):
        (folder / ".venv" / name).touch()
    kept = {name: value for name, value in os.environ.items() if name != "CALMLFLOW_HOME"}
    (folder / ".calmlflow").mkdir()
    done = subprocess.run(["make", "run"], cwd=folder, env=kept, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    asked = [line.split()[1:] for line in (folder / "asked").read_text().splitlines()]
    assert ["mlflow", "10"] in asked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b"]
