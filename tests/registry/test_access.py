"""A server with MLflow's basic-auth: each command needs what the README says, and no password is ever written down."""

import json
import os
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_ports
from tests.samples.commands import ROOT
from tests.samples.predictor_samples import NETWORKS, write_bundle

# Minutes, as basic-auth hashes the password of each new client.
pytestmark = pytest.mark.slow

PASSWORDS = {
    "admin": "admin-keeps-this-secret",
    "ann": "ann-keeps-this-secret",
    "ben": "ben-keeps-this-secret",
    "cas": "cas-keeps-this-secret",
}
MODEL = "calcloud-predictor"


class Guarded:
    """The server's address and folder, and commands that users run against it."""

    def __init__(self, uri: str, folder: Path):
        self.uri, self.folder = uri, folder

    def ask(self, path: str, payload: dict) -> None:
        """One request of the admin's."""
        token = b64encode(f"admin:{PASSWORDS['admin']}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(f"{self.uri}/api/{path}", json.dumps(payload).encode(), headers)
        ).close()

    def run(self, user: str, *command: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "CALMLFLOW_"))
        }
        env = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
            "CALMLFLOW_CACHE": str(self.folder / f"cache-{user}"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password or PASSWORDS[user],
        }
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        with (self.folder / "outputs.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return done


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[Guarded]:
    """A server of MLflow's basic-auth app: ann may manage the bundle, ben may edit it, cas may read."""
    folder = tmp_path_factory.mktemp("guarded")
    (port,) = free_ports(1)
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Without it every request costs half a second of hashing.
        "auth_cache_ttl_seconds = 600\nauth_cache_max_size = 100\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    env |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-a-test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        from calmlflow.server.processes import wait_until

        def answers() -> bool:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
            except OSError:
                return process.poll() is not None

        assert wait_until(answers, 120)
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        server = Guarded(f"http://127.0.0.1:{port}", folder)
        register_versions(server)
        yield server
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def register_versions(server: Guarded) -> None:
    """Three versions of the bundle, of the admin's; users with their permissions."""
    models = write_bundle(server.folder / "models")
    for network in NETWORKS:
        # The gate looks for both forms of a network; that nobody compares them is forced.
        (models / network / f"{network}.keras").write_bytes(b"")
    code = f"""
import mlflow
from pathlib import Path
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import log_model, register
mlflow.set_experiment("calcloud")
with mlflow.start_run():
    logged = log_model(Path({str(server.folder / "models")!r}), {NETWORKS!r}, {MODEL!r}, {{}})
for _ in range(3):
    register({{{MODEL!r}: logged}}, Lineage("sample", 2000, 1609459200, 0, {{}}, {{}}))
print(mlflow.get_experiment_by_name("calcloud").experiment_id)
"""
    done = server.run("admin", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    experiment = done.stdout.split()[-1]
    for user, permission in (("ann", "MANAGE"), ("ben", "EDIT"), ("cas", "READ")):
        server.ask("2.0/mlflow/users/create", {"username": user, "password": PASSWORDS[user]})
        may_log = "READ" if user == "cas" else "EDIT"
        for kind, name, granted in (("registered_model", MODEL, permission), ("experiment", experiment, may_log)):
            server.ask(
                "3.0/mlflow/users/permissions/grant",
                {"username": user, "resource_type": kind, "resource_id": name, "permission": granted},
            )


def stages_of(server: Guarded) -> dict[str, list[str]]:
    """Stage -> versions, as a reader sees them."""
    done = server.run("cas", "calmlflow", "stages", "--json")
    assert done.returncode == 0, done.stderr
    return {
        stage: [str(version["version"]) for version in versions]
        for stage, versions in json.loads(done.stdout)[MODEL].items()
        if versions
    }


FORCE = ("--force", "--reason", "a test without networks in Keras")


def test_each_user_does_what_the_permissions_allow(guarded):
    # Who may manage the model may do everything.
    for words in (("Staging", "--version", "1"), ("Production",), ("Production", "--version", "2")):
        done = guarded.run("ann", "calmlflow", "promote", "--stage", *words, *FORCE)
        assert done.returncode == 0, done.stderr[-2000:]
    # Who may only read it moves nothing.
    before = stages_of(guarded)
    done = guarded.run("cas", "calmlflow", "rollback", "--reason", "a test")
    assert (done.returncode, "the permission MANAGE" in done.stderr) == (1, True), done.stderr
    assert stages_of(guarded) == before
    done = guarded.run("ann", "calmlflow", "rollback", "--reason", "a test")
    assert "version 1 is back in Production" in done.stderr
    done = guarded.run("ann", "calmlflow", "promote", "--version", "3", *FORCE)
    assert done.returncode == 0, done.stderr[-2000:]
    before = stages_of(guarded)
    assert before == {"Production": ["1"], "Archived": ["2"], "Staging": ["3"]}

    # Who may only edit it moves nothing that would leave an alias behind, and leaves no half-made move.
    done = guarded.run("ben", "calmlflow", "promote", "--stage", "Production", *FORCE)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "the permission MANAGE" in line
    assert "Traceback" not in done.stderr
    assert stages_of(guarded) == before
    done = guarded.run("ann", "calmlflow", "stages", "--history", "--json")
    history = json.loads(done.stdout)
    assert [(event["action"], event["version"], event["who"]) for event in history] == [
        ("promotion", 1, "ann"), ("promotion", 1, "ann"), ("promotion", 2, "ann"), ("rollback", 1, "ann"),
        ("promotion", 3, "ann"),
    ]  # fmt: skip


def test_a_wrong_password_is_one_sentence(guarded):
    for command in (["stages"], ["rollback", "--reason", "x"], ["promote"]):
        done = guarded.run("ann", "calmlflow", *command, password="a-wrong-one")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "know" in done.stderr
        assert "READ" not in done.stderr


def test_rights_are_asked_for_before_the_gate(guarded):
    # Its gate would refuse the version, which has no networks in Keras.
    for user, right in (("cas", "EDIT on the experiment"), ("ben", "MANAGE on the registered model")):
        done = guarded.run(user, "calmlflow", "promote", "--version", "3")
        (line,) = done.stderr.splitlines()
        assert (done.returncode, f"lets {user} not" in line, right in line) == (1, True, True), line


def test_no_password_is_ever_written_down(guarded):
    guarded.run("ann", "calmlflow", "promote", "--version", "3", *FORCE)
    written = [
        path for path in guarded.folder.rglob("*") if path.is_file() and path.name not in ("auth.ini", "auth.db")
    ]
    assert {"outputs.log", "server.log", "mlflow.db"} <= {path.name for path in written}
    assert any("artifacts" in path.parts for path in written)
    for path in written:
        content = path.read_bytes()
        for password in (*PASSWORDS.values(), "a-wrong-one"):
            assert password.encode() not in content, path.name
            assert b64encode(f"ann:{password}".encode()) not in content, path.name
