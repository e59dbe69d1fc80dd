"""The Lambda image: what is baked, what its Dockerfile says, and that it answers as Lambda calls it."""

# There is no Docker here: the slow tests lay the image's folder out as the Dockerfile does and run AWS's own runtime
# interface client from it, against a Runtime API on loopback.

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calmlflow.predictor import Predictor
from calmlflow.predictor.answers import mosaic_policy
from tests.samples.commands import ROOT
from tests.samples.event_samples import BUCKET, JOB, KEY, s3_record
from tests.samples.predictor_samples import CONTROL, FILES, STAGES, files_of, http_registry, staged, write_bundle

DEPLOY = ROOT / "deploy" / "lambda"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
RUNTIME_CLIENT = "awslambdaric==4.2.2"
OWN = ("CALMLFLOW_", "MLFLOW_", "AWS_")


def clean(**more: str) -> dict[str, str]:
    """An environment that names no registry, no store and no settings but those given."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN)} | more


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("version") / "bundle")


def registered(version: str, bundle: Path) -> tuple[int, bytes]:
    """The registry's answer for a version with the digest of this bundle."""
    return staged(version, {"bundle_sha256": hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()})


def bake(uri: str, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEPLOY / "bake.py"), "--output", str(output), *words],
        env=clean(MLFLOW_TRACKING_URI=uri, NO_PROXY="127.0.0.1"),
        cwd=output.parent,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def baked(bundle, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("baked") / "build"
    with http_registry({STAGES: registered("7", bundle), FILES: files_of(bundle)}) as registry:
        done = bake(registry.uri, output)
    assert done.returncode == 0, done.stderr
    assert "version 7 of calcloud-predictor (Production) on" in done.stderr
    assert re.search(r"bundle \d+\.\d\d MB, code \d+\.\d\d MB", done.stderr)
    return output / "image"


# -- Baking ---------------------------------------------------------------------------------------------------------


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_code_and_requirements_are_baked_for_every_user(baked, bundle):
    assert {path.name for path in baked.iterdir()} == {"bundle", "calmlflow", "requirements.txt"}
    found = files_in(baked / "bundle")
    assert json.loads(found.pop("version.json")) == {"version": "7", "stage": "Production"}
    assert found == files_in(bundle)
    code = files_in(baked / "calmlflow")
    parts = {"__init__.py", "errors.py", "settings.py", "hst", "predictor", "storage"}
    assert {name.partition("/")[0] for name in code} == parts
    assert {"predictor/aws_lambda.py", "hst/features.py", "storage/s3.py"} <= code.keys()
    assert not {"predictor/batch/predict.py", "storage/tables.py"} & code.keys()
    assert code["hst/features.py"] == (ROOT / "calmlflow" / "hst" / "features.py").read_bytes()
    pins = (baked / "requirements.txt").read_text().split()
    assert {pin.partition("==")[0] for pin in pins} == {"boto3", "numpy", "onnxruntime"}
    assert all(f'"{pin}"' in (ROOT / "pyproject.toml").read_text() for pin in pins)
    for path in (baked, *baked.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_the_baked_code_answers_by_itself(baked, bundle):
    # Its own calmlflow, not the one that is installed; packages are those of the test's environment.
    code = f"""
import sys
import calmlflow
from calmlflow.predictor.aws_lambda import _predictor, handler
assert calmlflow.__file__ == {str(baked / "calmlflow" / "__init__.py")!r}, calmlflow.__file__
assert handler({{"Bucket": "any", "Ipppssoot": "acs_8ph_01"}})["memBin"] == 1
answer = _predictor().predict({JOB!r}, {CONTROL!r})
assert (answer["version"], answer["source"]) == ("7", "cache")
"""
    environment = clean(PYTHONPATH=str(baked), CALMLFLOW_BUNDLE=str(baked / "bundle"), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_baked_that_is_not_what_was_registered(bundle, tmp_path):
    other = write_bundle(tmp_path / "other", seed=5)
    with http_registry({FILES: files_of(other)}) as registry:
        for answer, words in (
            (registered("7", bundle), "bundle.json of version 7 has the SHA-256"),
            (staged("7"), "version 7 of calcloud-predictor has no tag bundle_sha256"),
        ):
            registry.answers[STAGES] = answer
            done = bake(registry.uri, tmp_path / "build")
            assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "build" / "image").exists()


def test_baking_again_replaces_what_was_there_unless_the_version_is_damaged(bundle, tmp_path):
    output = tmp_path / "build"
    other = write_bundle(tmp_path / "other", seed=5)
    (output / ".new-left" / "image").mkdir(parents=True)
    with http_registry({STAGES: registered("7", bundle), FILES: files_of(bundle)}) as registry:
        assert bake(registry.uri, output).returncode == 0
        (output / "image" / "bundle" / "stray").touch()
        registry.answers |= {STAGES: registered("8", other), FILES: files_of(other)}
        assert bake(registry.uri, output, "--stage", "staging").returncode == 0
        assert registry.queries[-1][1]["version"] == ["8"]
        damaged = shutil.copytree(bundle, tmp_path / "damaged")
        (damaged / "killtime.json").write_bytes(b"{}")
        registry.answers |= {STAGES: registered("9", damaged), FILES: files_of(damaged)}
        done = bake(registry.uri, output)
        assert done.returncode == 1
        assert "killtime.json does not match its SHA-256" in done.stderr
    found = files_in(output / "image" / "bundle")
    assert json.loads(found.pop("version.json")) == {"version": "8", "stage": "Staging"}
    assert found == files_in(other)
    assert {path.name for path in output.iterdir()} == {"image", ".lock"}


def test_a_wrong_stage_is_told_in_one_line(tmp_path, ports):
    done = bake(f"http://127.0.0.1:{ports[0]}", tmp_path / "build", "--stage", "a b")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'a b' names no version; expected a stage")
    assert len(done.stderr.splitlines()) == 1


# -- The Dockerfile -------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_image_runs_the_handler_as_a_user_of_its_own_without_training_libraries(baked):
    said = dict(instructions())
    # Its C library is the one that the wheels need.
    assert said["FROM"] == "public.ecr.aws/lambda/python:3.12"
    assert said["USER"] not in ("root", "0", "0:0")
    assert [name for name, _ in instructions()][-2:] == ["USER", "CMD"]
    (handler,) = json.loads(said["CMD"])
    module, _, function = handler.rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
    for name, words in instructions():
        assert not re.search("tensorflow|keras|(?<!cal)mlflow", words, re.IGNORECASE), words
        if name == "COPY":
            taken = words.split()[0]
            assert taken.startswith("build/image/")
            assert (baked / taken.removeprefix("build/image/")).exists()
    (where,) = [words.split()[1] for name, words in instructions() if "image/bundle" in words]
    assert f"CALMLFLOW_BUNDLE={where} " in said["ENV"]
    assert "CALMLFLOW_CACHE=/tmp/" in said["ENV"]


# -- As Lambda calls it ---------------------------------------------------------------------------------------------


def uv(*words: str) -> str:
    command = [sys.executable, "-m", "uv", "pip", *words, "--quiet", "--only-binary", ":all:"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(target: Path, image: Path) -> None:
    """What the Dockerfile does: packages and code into one folder."""
    places = ["--python", sys.executable, "--target", str(target)]
    uv("install", "--compile-bytecode", *places, "-r", str(image / "requirements.txt"), RUNTIME_CLIENT)
    shutil.copytree(image / "calmlflow", target / "calmlflow")


Answers = dict[int, tuple[str, dict]]


@contextmanager
def runtime_api(events: list[object]) -> Iterator[tuple[str, Callable[[], Answers]]]:
    """Lambda's Runtime API; gives its address, and a function that waits for what comes back to each event."""
    waiting, answers = list(enumerate(events)), {}
    done, over = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == "/2018-06-01/runtime/invocation/next"
            if not waiting:
                # As Lambda does between calls: no answer, until the instance is ended.
                over.wait()
                self.close_connection = True
                return
            number, event = waiting.pop(0)
            body = event if isinstance(event, bytes) else json.dumps(event).encode()
            arn = "arn:aws:lambda:us-east-1:000000000000:function:f"
            about = {"Aws-Request-Id": number, "Deadline-Ms": "9999999999999", "Invoked-Function-Arn": arn}
            headers = {f"Lambda-Runtime-{name}": value for name, value in about.items()}
            self.respond(200, body, **headers, **{"Content-Type": "application/json"})

        def do_POST(self) -> None:
            *_, number, kind = self.path.split("/")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers[-1 if number == "init" else int(number)] = kind, body
            if number == "init" or len(answers) == len(events):
                done.set()
            self.respond(202)

        def respond(self, status: int, body: bytes = b"", **headers: object) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    def collect() -> Answers:
        assert done.wait(60), answers
        return answers

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", collect
        finally:
            over.set()
            server.shutdown()
            thread.join()


def call(task: Path, events: list[object], log: Path, **environment: str) -> Answers:
    """Run AWS's client from the task folder alone, and hand it the events; gives what it answers to each."""
    with runtime_api(events) as (address, collect), log.open("w") as stderr:
        environment |= {"AWS_LAMBDA_RUNTIME_API": address, "AWS_LAMBDA_FUNCTION_NAME": "f"}
        environment |= {"PYTHONPATH": str(task), "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "127.0.0.1"}
        # -S: no packages but those of the task folder.
        process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-m", "awslambdaric", "calmlflow.predictor.aws_lambda.handler"],
            env=clean(**environment, LAMBDA_TASK_ROOT=str(task)),
            cwd=task,
            stdout=stderr,
            stderr=stderr,
        )
        try:
            return collect()
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_the_image_answers_as_lambda_calls_it(baked, s3, tracking, tmp_path, monkeypatch):
    task = tmp_path / "task"
    install(task, baked)
    s3.put_object(Bucket=BUCKET, Key=KEY, Body="\n".join(f"{key}={value}" for key, value in CONTROL.items()).encode())
    events: list[object] = [
        {"Bucket": BUCKET, "Key": KEY, "Ipppssoot": JOB},
        {"Bucket": BUCKET, "Ipppssoot": "not a dataset"},
        {"Records": [s3_record(), s3_record("control/acs_8ph_01/file"), s3_record("outputs/x")]},
        {"Bucket": BUCKET, "Ipppssoot": "jzzz88010"},
        b'{"Bucket": "any", "Ipppssoot": "\\ud800", "Key": ' + b"9" * 4000 + b"}",
        {"Bucket": BUCKET, "Dataset": JOB},
    ]
    log = tmp_path / "log"
    own = {name: value for name, value in tracking.environment().items() if name.startswith("AWS_")}
    kept, cache = f"kept-{tmp_path.parent.name}-{tmp_path.name}", tmp_path / "cache"
    ours = {"BUNDLE": baked / "bundle", "CACHE": cache, "EMIT": f"s3://{BUCKET}/{kept}"}
    own |= {f"CALMLFLOW_{name}": str(value) for name, value in ours.items()}
    answers = call(task, events, log, **own)
    assert {kind for kind, _ in answers.values()} == {"response"}, answers
    first, bad, told, gone, odd, last = (answers[number][1] for number in range(6))

    monkeypatch.setenv("CALMLFLOW_BUNDLE", str(baked / "bundle"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path))
    expected = Predictor().predict(JOB, CONTROL)
    assert (expected["version"], expected["source"]) == ("7", "cache")
    assert first == last == expected
    assert bad["errorType"] == odd["errorType"] == gone["errorType"] == "InputError"
    assert told["answers"][0] == {"dataset": JOB, **expected}
    assert told["answers"][1] == {"dataset": "acs_8ph_01", **mosaic_policy()}
    assert told["answers"][2]["errorType"] == "InputError"

    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    answered = [line["dataset"] for line in lines if line["logger"] == "calmlflow.answers"]
    assert answered == [JOB, JOB, "acs_8ph_01", JOB]
    assert {line["version"] for line in lines if line.get("dataset") == JOB} == {"7"}
    assert "Traceback" not in log.read_text()
    objects = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{kept}/")["Contents"]
    assert sorted(each["Key"].split("/")[1] for each in objects) == ["acs_8ph_01", JOB, JOB, JOB]
    assert not cache.exists()


@pytest.mark.slow
def test_there_are_wheels_of_every_package_for_the_image(baked):
    platform = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_34"]
    lines = uv("compile", "--no-header", *platform, str(baked / "requirements.txt")).splitlines()
    installed = {line.partition("==")[0] for line in lines if "==" in line}
    assert not installed & {"tensorflow", "keras", "mlflow", "mlflow-skinny", "pandas", "scikit-learn", "matplotlib"}
