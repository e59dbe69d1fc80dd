"""The Dockerfiles of server and ingest: what a linter says, what they take and run, and that ingest's packages do."""

# There is no Docker here: what a RUN line does for ingest is done in a folder, and the handler runs from there alone.

import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.samples.commands import ROOT
from tests.samples.container_commands import check_command, command_of, instructions, last

DOCKERFILES = sorted((ROOT / "deploy").glob("*/Dockerfile"))
SERVER, INGEST = ROOT / "deploy" / "server" / "Dockerfile", ROOT / "deploy" / "ingest" / "Dockerfile"
INSTALL = next(words for name, words in instructions(INGEST) if name == "RUN")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_linter_finds_nothing(path):
    done = subprocess.run(["hadolint", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", [SERVER, INGEST], ids=lambda path: path.parent.name)
def test_an_image_runs_as_a_user_of_its_own_from_files_that_the_context_has(path):
    assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", last(path, "USER"))
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, words in instructions(path):
        if name == "COPY" and not words.startswith("--from"):
            for taken in words.split()[:-1]:
                assert (ROOT / taken).exists()
                assert taken in allowed
        if name == "FROM":
            assert ":" in words
            assert "latest" not in words
        # Whatever pip or uv install comes with a hash, or is this project, built by what has come.
        for line in re.findall(r"pip install [^&]*", words):
            assert "--require-hashes" in line or "--no-deps --no-build-isolation ." in line


def test_the_server_image_has_the_project_and_the_program_that_backs_up_the_database():
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    (major,) = re.findall(r"image: postgres:(\d+)", compose)
    assert f"postgresql-client-{major} " in last(SERVER, "RUN")
    for words in (last(SERVER, "CMD"), last(SERVER, "HEALTHCHECK")):
        check_command(command_of(words))
    assert last(SERVER, "VOLUME") == '["/var/lib/calmlflow"]'
    assert "CALMLFLOW_HOME=/var/lib/calmlflow " in last(SERVER, "ENV")


@pytest.mark.parametrize("command", ["calmlflow serve", "calmlflow server --hots 0.0.0.0", "calmlflow jobs status x"])
def test_a_command_that_does_not_exist_is_found(command):
    with pytest.raises(Exception, match=r"No such|unexpected"):
        check_command(command.split())


def test_ingest_takes_its_packages_in_the_project_s_versions(tmp_path):
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (line,) = re.findall(r"sed -nE .*?> wanted.txt", INSTALL)
    line = line.replace("pyproject.toml", f"{ROOT}/pyproject.toml")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    found = (tmp_path / "wanted.txt").read_text().split()
    (named,) = re.findall(r"\((alembic.*?)\)", line)
    assert [pin.partition("==")[0] for pin in found] == named.split("|")
    assert set(found) <= set(pins)
    (handler,) = command_of(last(INGEST, "CMD"))
    module, _, function = handler.rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


@pytest.mark.slow
def test_ingest_runs_from_the_packages_of_its_image(tmp_path):
    build, task = tmp_path / "build", tmp_path / "task"
    build.mkdir()
    for name in ("pyproject.toml", "requirements.lock", "requirements-test.lock"):
        (build / name).write_bytes((ROOT / name).read_bytes())
    run = INSTALL.replace("/tmp/build", str(build)).replace("--no-cache ", "")
    run = re.sub(r"\bpython\b", sys.executable, run)
    environment = os.environ | {"LAMBDA_TASK_ROOT": str(task)}
    done = subprocess.run(["bash", "-ec", run], cwd=build, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert not list(build.iterdir())
    (task / "calmlflow").symlink_to(ROOT / "calmlflow")
    code = """
import sys
from calmlflow.jobs.aws_lambda import handler, _store
from calmlflow.jobs.stores.open import open_store
store = _store("sqlite:///jobs.db")
print(handler({"Records": [{"eventSource": "aws:sqs", "messageId": "1", "body": '{"Event": "s3:TestEvent"}'}]}))
for uri in ("postgresql://127.0.0.1:1/x", "dynamodb://table?region=us-east-1"):
    try:
        open_store(uri)
    except Exception as error:
        print(type(error).__name__)
print([name for name in ("tensorflow", "mlflow", "matplotlib") if name in sys.modules])
"""
    # -S: no packages but those of the image's folder.
    environment = {"PYTHONPATH": str(task), "PYTHONDONTWRITEBYTECODE": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-S", "-s", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["CalmlflowError", "CalmlflowError", "[]"]
    assert "'datasets': 0" in done.stdout
