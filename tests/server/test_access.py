"""A server on PostgreSQL and S3 with --auth: each role may what it is for, and no password is ever written down."""

import json
import os
import re
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import access, database
from calmlflow.server import supervisor as embedded
from tests.conftest import free_ports
from tests.samples.commands import ROOT, processes_of
from tests.samples.predictor_samples import NETWORKS, write_bundle

PASSWORDS = {
    "ann": "ann-keeps-this-secret",
    "ben": "ben-keeps-this-secret",
    "cas": "cas-keeps-this-secret",
    "dan": "dan-keeps-this-secret",
}
ROLES = {"ann": "promoter", "ben": "trainer", "cas": "reader"}
MODEL = settings.BUNDLE_MODEL
BUCKET = "guarded-artifacts"


class Guarded:
    """The server's address and folder, and commands and requests of its users."""

    def __init__(self, uri: str, folder: Path):
        self.uri, self.folder = uri, folder
        self.experiment = ""
        self.known = {}

    def ask(
        self, user: str | None, method: str, path: str, body: object = None, content: str = "application/json"
    ) -> tuple[int, bytes]:
        """Status and body of one request; by nobody where the user is None."""
        headers = {"Content-Type": content}
        if user == access.ADMIN:
            headers |= access.admin_headers(self.folder / "home")
        elif user:
            headers["Authorization"] = "Basic " + b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode()
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.uri + path, data, headers, method=method)) as got:
                return got.status, got.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def run(self, user: str, *command: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "CALMLFLOW_"))
        }
        env = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
            "CALMLFLOW_CACHE": str(self.folder / f"cache-{user}"),
            "CALMLFLOW_HOME": str(self.folder / "home"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": self.uri,
        }
        if user != access.ADMIN:
            env |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password or PASSWORDS[user]}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        with (self.folder / "outputs.log").open("a") as log:
            log.write(done.stdout + done.stderr)
        return done


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, server, postgres) -> Iterator[Guarded]:
    """Ann promotes, ben trains, cas reads, and dan, a user without a role, may nothing."""
    import boto3
    import psycopg

    folder = tmp_path_factory.mktemp("guarded")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE guarded")
    backend = database.read_backend(postgres.replace("/postgres?", "/guarded?"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
            patch.delenv(name)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setenv("CALMLFLOW_HOME", str(folder / "home"))
        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
        deployment = embedded.Deployment(
            backend, f"s3://{BUCKET}/mlflow", allowed_hosts="mlflow.example.org", auth=True
        )
        started = embedded.start(*free_ports(), folder / "home", deployment)
        try:
            for name, value in {"URI": started.tracking_uri, "USERNAME": "", "PASSWORD": ""}.items():
                patch.setenv(f"MLFLOW_TRACKING_{name}", value)
            access.log_in(started.home)
            found = Guarded(started.tracking_uri, folder)
            for user, role in (*ROLES.items(), ("dan", "reader")):
                assert access.add_user(user, role, PASSWORDS[user]) is None
            take_role(found, "dan")
            register_versions(found)
            yield found
        finally:
            embedded.stop(folder / "home")
            with psycopg.connect(postgres, autocommit=True) as connection:
                connection.execute("DROP DATABASE guarded WITH (FORCE)")


def take_role(server: Guarded, user: str) -> None:
    roles = json.loads(server.ask("admin", "GET", f"/api/3.0/mlflow/users/roles/list?username={user}")[1])["roles"]
    body = {"username": user, "role_id": roles[0]["id"]}
    assert server.ask("admin", "DELETE", "/api/3.0/mlflow/roles/unassign", body)[0] == 200


def register_versions(server: Guarded) -> None:
    """Three versions of the bundle, trained by ben."""
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
with mlflow.start_run() as run:
    logged = log_model(Path({str(server.folder / "models")!r}), {NETWORKS!r}, {MODEL!r}, {{}})
    mlflow.log_text("seventeen datasets", "notes/a.txt")
for _ in range(3):
    register({{{MODEL!r}: logged}}, Lineage("sample", 2000, 1609459200, 0, {{}}, {{}}))
print(run.info.experiment_id, run.info.run_id, logged.uri.rpartition("/")[2])
"""
    done = server.run("ben", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    server.known = dict(zip(("experiment", "run", "model_id"), done.stdout.split()[-3:], strict=True))


# -- What each role may ------------------------------------------------------------------------------------------------

ALL, WRITERS, MOVERS = {"ann", "ben", "cas"}, {"ann", "ben"}, {"ann"}
# Method, path, body, who may: the requests that calmlflow makes, through MLflow or without it, and those of admins.
REQUESTS = [
    ("GET", "experiments/get-by-name?experiment_name=calcloud", None, ALL),
    ("POST", "experiments/search", {"max_results": 5}, ALL | {"dan"}),
    ("POST", "experiments/create", {"name": "new-{user}"}, WRITERS),
    ("POST", "experiments/set-experiment-tag", {"experiment_id": "{experiment}", "key": "k", "value": "v"}, WRITERS),
    ("POST", "runs/create", {"experiment_id": "{experiment}"}, WRITERS),
    ("GET", "runs/get?run_id={run}", None, ALL),
    ("POST", "runs/search", {"experiment_ids": ["{experiment}"]}, ALL | {"dan"}),
    ("POST", "runs/log-batch", {"run_id": "{run}", "metrics": []}, WRITERS),
    ("POST", "runs/log-parameter", {"run_id": "{run}", "key": "k", "value": "v"}, WRITERS),
    ("POST", "runs/set-tag", {"run_id": "{run}", "key": "k", "value": "v"}, WRITERS),
    ("POST", "runs/update", {"run_id": "{run}", "status": "FINISHED"}, WRITERS),
    ("GET", "metrics/get-history?run_id={run}&metric_key=m", None, ALL),
    ("GET", "artifacts/list?run_id={run}", None, ALL),
    ("POST", "logged-models", {"experiment_id": "{experiment}", "name": "m"}, WRITERS),
    ("GET", "logged-models/{model_id}", None, ALL),
    ("PATCH", "logged-models/{model_id}/tags", {"tags": [{"key": "k", "value": "v"}]}, WRITERS),
    ("POST", "registered-models/create", {"name": "new-{user}"}, WRITERS),
    ("GET", "registered-models/get?name={model}", None, ALL),
    ("GET", "registered-models/search", None, ALL | {"dan"}),
    ("GET", "registered-models/get-latest-versions?name={model}", None, ALL),
    ("POST", "registered-models/alias", {"name": "{model}", "alias": "x", "version": "1"}, MOVERS),
    ("GET", "registered-models/alias?name={model}&alias=x", None, ALL),
    ("DELETE", "registered-models/alias", {"name": "{model}", "alias": "x"}, MOVERS),
    ("PATCH", "registered-models/update", {"name": "{model}", "description": "d"}, MOVERS),
    ("POST", "registered-models/set-tag", {"name": "{model}", "key": "k", "value": "v"}, MOVERS),
    ("POST", "model-versions/create", {"name": "{model}", "source": "runs:/{run}/notes", "run_id": "{run}"}, WRITERS),
    ("GET", "model-versions/get?name={model}&version=1", None, ALL),
    ("GET", "model-versions/search?filter=name%3D'{model}'", None, ALL | {"dan"}),
    ("GET", "model-versions/get-download-uri?name={model}&version=1", None, ALL),
    ("PATCH", "model-versions/update", {"name": "{model}", "version": "1", "description": "d"}, MOVERS),
    ("POST", "model-versions/set-tag", {"name": "{model}", "version": "1", "key": "k", "value": "v"}, MOVERS),
    ("DELETE", "model-versions/delete-tag", {"name": "{model}", "version": "1", "key": "k"}, MOVERS),
    ("POST", "model-versions/transition-stage", {"name": "{model}", "version": "1", "stage": "None"}, MOVERS),
    ("GET", "webhooks", None, set()),
    # Who made something may see whom to share it with, but only the admin shares.
    ("GET", "users/list", None, WRITERS),
    ("POST", "users/create", {"username": "eve", "password": "eve-wants-to-come-in"}, set()),
    ("PATCH", "users/update-admin", {"username": "{user}", "is_admin": True}, set()),
]  # fmt: skip
GRANT = {"username": "cas", "resource_type": "registered_model", "resource_id": "{model}", "permission": "MANAGE"}
OTHERS = [
    ("POST", "/api/3.0/mlflow/users/permissions/grant", GRANT, set()),
    (
        "PUT",
        "/api/2.0/mlflow-artifacts/artifacts/workspaces/default/{experiment}/{run}/artifacts/{user}.txt",
        b"new",
        WRITERS,
    ),
    (
        "GET",
        "/api/2.0/mlflow-artifacts/artifacts/workspaces/default/{experiment}/{run}/artifacts/notes/a.txt",
        None,
        ALL,
    ),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=workspaces/default/{experiment}/{run}/artifacts", None, ALL),
    (
        "DELETE",
        "/api/2.0/mlflow-artifacts/artifacts/workspaces/default/{experiment}/{run}/artifacts/ben.txt",
        None,
        set(),
    ),
    ("GET", "/get-artifact?run_uuid={run}&path=notes/a.txt", None, ALL),
    ("GET", "/model-versions/get-artifact?name={model}&version=1&path=MLmodel", None, ALL),
    ("POST", "/graphql", {"query": "{{ __typename }}"}, ALL | {"dan"}),
]


def filled(value, words):
    if isinstance(value, dict):
        return {key: filled(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, words) for item in value]
    return value.format(**words) if isinstance(value, str) else value


@pytest.mark.parametrize(
    "method, path, body, may", [*((m, f"/api/2.0/mlflow/{p}", b, may) for m, p, b, may in REQUESTS), *OTHERS]
)
def test_each_role_may_what_it_is_for_and_strangers_nothing(guarded, method, path, body, may):
    statuses = {}
    for user in (None, "ann", "ben", "cas", "dan"):
        words = {**guarded.known, "model": MODEL, "user": user}
        statuses[user], said = guarded.ask(user, method, filled(path, words), filled(body, words))
        if user == "dan" and user in may:
            # What is listed is what may be read.
            assert guarded.known["run"].encode() not in said
            assert MODEL.encode() not in said
    assert statuses == {None: 401} | {user: 200 if user in may else 403 for user in ("ann", "ben", "cas", "dan")}


ROUTES = """
import json
from starlette.routing import Mount
from mlflow.server import auth
app = auth.create_app()
def native(routes, prefix=""):
    for route in routes:
        if hasattr(route, "original_router"):
            yield from native(route.original_router.routes)
        elif not isinstance(route, Mount):
            yield from ((method, route.path) for method in route.methods)
flask = ((method, rule.rule) for rule in auth.app.url_map.iter_rules() for method in rule.methods)
print(json.dumps(sorted({*flask, *native(app.routes)})))
"""
# They write nothing of the server's.
ASKED_BY_POST = (
    "experiments/search", "experiments/search-datasets", "runs/search", "logged-models/search", "get-latest-versions",
    "datasets/search", "issues/search", "jobs/search", "ui-telemetry", "graphql", "traces/search", "batchGetInfos",
)  # fmt: skip


@pytest.mark.slow
def test_no_route_of_mlflow_lets_strangers_in_or_readers_write(guarded, tmp_path):
    found = guarded.run(
        "admin", "env", f"_MLFLOW_SERVER_FILE_STORE=sqlite:///{tmp_path}/mlflow.db", "_MLFLOW_SGI_NAME=uvicorn",
        f"MLFLOW_AUTH_CONFIG_PATH={write_auth(tmp_path)}", "MLFLOW_FLASK_SERVER_SECRET_KEY=of-this-test",
        sys.executable, "-c", ROUTES,
    )  # fmt: skip
    routes = json.loads(found.stdout.splitlines()[-1])
    assert len(routes) > 400
    body = {
        "name": MODEL, "version": "1", "run_id": guarded.known["run"], "experiment_id": guarded.known["experiment"],
        "key": "k", "value": "v", "alias": "x", "stage": "None", "new_name": "n", "username": "ann", "resource_id": "*",
        "password": "ann-is-locked-out-now", "is_admin": True, "role_id": 1, "resource_type": "experiment",
        "resource_pattern": "*", "permission": "MANAGE", "workspace": "default", "secret_name": "s", "source": "s3://b/k",
    }  # fmt: skip
    wrong = []
    for method, rule in routes:
        path = re.sub(r"[<{][^>}]*[>}]", guarded.known["experiment"], rule)
        if method in ("HEAD", "OPTIONS") or not path.startswith("/") or path.startswith(("/static", "/health")):
            continue
        status, _ = guarded.ask(None, method, path, body if method != "GET" else None)
        if status not in (401, 404) and "server-info" not in path:
            wrong.append((method, rule, "by nobody", status))
        if method != "GET" and not path.endswith(ASKED_BY_POST):
            status, _ = guarded.ask("cas", method, path, body)
            if status not in (400, 403, 404, 405, 422):
                wrong.append((method, rule, "by a reader", status))
    assert wrong == []


def write_auth(folder: Path) -> Path:
    access.write_config(folder, f"sqlite:///{folder}/mlflow.db")
    return folder / "auth.ini"


def test_a_trainer_cannot_name_one_model_and_change_another(guarded):
    assert guarded.ask("ben", "POST", "/api/2.0/mlflow/registered-models/create", {"name": "of-ben"})[0] == 200
    alias = {"name": MODEL, "alias": "kept", "version": "1"}
    assert guarded.ask("ann", "POST", "/api/2.0/mlflow/registered-models/alias", alias)[0] == 200
    for content in ("text/plain", "application/json"):
        path = "/api/2.0/mlflow/registered-models/alias?name=of-ben&alias=kept"
        for body in (json.dumps(alias).encode(), json.dumps(json.dumps(alias)).encode()):
            assert guarded.ask("ben", "DELETE", path, body, content)[0] in (400, 403)
    assert guarded.ask("cas", "GET", f"/api/2.0/mlflow/registered-models/alias?name={MODEL}&alias=kept")[0] == 200
    assert guarded.ask("ann", "DELETE", "/api/2.0/mlflow/registered-models/alias", alias)[0] == 200


def test_a_trainers_artifact_is_in_the_bucket_and_the_run_in_postgresql(guarded, s3, postgres):
    import psycopg

    key = "mlflow/workspaces/default/{experiment}/{run}/artifacts/notes/a.txt".format(**guarded.known)
    assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"seventeen datasets"
    with psycopg.connect(postgres.replace("/postgres?", "/guarded?")) as connection:
        found = connection.execute("SELECT user_id FROM runs WHERE run_uuid = %s", [guarded.known["run"]]).fetchall()
    assert len(found) == 1


def test_only_hosts_and_pages_that_are_allowed_are_answered(guarded):
    path = "/api/2.0/mlflow/runs/search"
    for headers, expected in (
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "mlflow.example.org", "Origin": "https://evil.example.org"}, 403),
        ({"Host": "mlflow.example.org", "Origin": "https://mlflow.example.org"}, 400),
    ):
        sent = {**access.admin_headers(guarded.folder / "home"), "Content-Type": "application/json", **headers}
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(urllib.request.Request(guarded.uri + path, b'{"max_results": -1}', sent))
        assert told.value.code == expected, headers


# -- Users -------------------------------------------------------------------------------------------------------------


def test_users_come_change_and_go(guarded):
    def command(*words):
        done = guarded.run("admin", "calmlflow", "server", "user", *words)
        assert "Traceback" not in done.stderr
        return done

    done = command("add", "fay", "--role", "trainer")
    assert done.returncode == 0, done.stderr
    path = Path(re.search(r"password is in (\S+)", done.stderr)[1])
    PASSWORDS["fay"] = path.read_text().strip()
    assert (stat.S_IMODE(path.stat().st_mode), len(PASSWORDS["fay"])) == (0o600, 32)
    assert PASSWORDS["fay"] not in done.stderr + done.stdout
    create = ("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": guarded.known["experiment"]})
    assert guarded.ask("fay", *create)[0] == 200
    # Again, and with less.
    assert command("add", "fay", "--role", "trainer").returncode == 0
    assert guarded.ask("fay", *create)[0] == 200
    assert command("add", "fay", "--role", "reader").returncode == 0
    assert guarded.ask("fay", *create)[0] == 403
    assert command("list").stdout.splitlines() == [
        "ann\tpromoter",
        "ben\ttrainer",
        "cas\treader",
        "dan\tnone",
        "fay\treader",
    ]
    assert command("remove", "fay").returncode == 0
    assert (guarded.ask("fay", *create)[0], path.exists()) == (401, False)
    assert "no user 'fay'; expected one of: ann, ben" in command("remove", "fay").stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (("eve", "boss"), "reader, trainer, promoter"),
        (("admin", "reader"), "'admin'"),
        (("a/b", "reader"), "a/b"),
        (("eve", "reader", "short"), "12 characters"),
    ],
)
def test_a_user_that_cannot_be_is_refused(words, told):
    with pytest.raises(InputError, match=told):
        access.add_user(*words)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_admins_password_is_shown_once_and_on_a_terminal_alone(tmp_path, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    embedded.prepare_auth(tmp_path, embedded.Deployment(auth=True))
    token = access.admin_headers(tmp_path)["Authorization"].partition(" ")[2]
    shown = capsys.readouterr().err
    assert str(tmp_path / "auth.ini") in shown
    assert (b64decode(token).decode().partition(":")[2] in shown) == is_terminal
    embedded.prepare_auth(tmp_path, embedded.Deployment(auth=True))
    assert (capsys.readouterr().err, access.admin_headers(tmp_path)["Authorization"]) == ("", f"Basic {token}")


def test_only_the_admin_manages_users(guarded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["ann"])
    with pytest.raises(CalmlflowError, match="does not let you manage users; expected its admin"):
        access.add_user("eve", "reader")
    assert not (guarded.folder / "home" / "users" / "eve").exists()


def test_a_server_without_auth_has_no_users(tracking):
    with pytest.raises(CalmlflowError, match="has no users; expected one that was started with --auth"):
        access.list_users()


def test_status_asks_database_and_store(guarded, s3):
    done = guarded.run("admin", "calmlflow", "server", "status", "--json")
    assert done.returncode == 0, done.stderr
    answer = {"ready": True, "tracking_uri": guarded.uri, "database": True, "artifacts": True}
    assert json.loads(done.stdout) == answer
    done = guarded.run(
        "admin", "env", f"CALMLFLOW_HOME={guarded.folder}/none", "calmlflow", "server", "status", "--json"
    )
    assert (done.returncode, json.loads(done.stdout)["ready"]) == (1, False)


# -- The commands ------------------------------------------------------------------------------------------------------


def stages_of(server: Guarded) -> dict[str, list[str]]:
    """Stage -> versions, as a reader sees them."""
    done = server.run("cas", "calmlflow", "stages", "--json")
    assert done.returncode == 0, done.stderr
    return {
        stage: [str(version["version"]) for version in versions]
        for stage, versions in json.loads(done.stdout)[MODEL].items()
        if versions and stage != "None"
    }


FORCE = ("--force", "--reason", "a test without networks in Keras")


@pytest.mark.slow
def test_each_user_does_what_the_permissions_allow(guarded):
    # Who may manage the model may do everything.
    for words in (("Staging", "--version", "1"), ("Production",), ("Production", "--version", "2")):
        done = guarded.run("ann", "calmlflow", "promote", "--stage", *words, *FORCE)
        assert done.returncode == 0, done.stderr[-2000:]
    # Who may only read it predicts, and moves nothing.
    control = "examples/j8c601020_MemModelFeatures.txt"
    done = guarded.run("cas", "calmlflow", "predict", "j8c601020", "--control", control)
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["source"], json.loads(done.stdout)["version"]) == ("registry", "2")
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


@pytest.mark.slow
def test_a_wrong_password_is_one_sentence(guarded):
    for command in (["stages"], ["rollback", "--reason", "x"], ["promote"]):
        done = guarded.run("ann", "calmlflow", *command, password="a-wrong-one")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "know" in done.stderr
        assert "READ" not in done.stderr


@pytest.mark.slow
def test_rights_are_asked_for_before_the_gate(guarded):
    # Its gate would refuse the version, which has no networks in Keras.
    for user, right in (("cas", "EDIT on the experiment"), ("ben", "MANAGE on the registered model")):
        done = guarded.run(user, "calmlflow", "promote", "--version", "3")
        (line,) = done.stderr.splitlines()
        assert (done.returncode, f"lets {user} not" in line, right in line) == (1, True, True), line


@pytest.mark.slow
def test_no_password_is_ever_written_down(guarded):
    guarded.run("ann", "calmlflow", "promote", "--version", "3", *FORCE)
    home = guarded.folder / "home"
    written = {
        path: path.read_bytes() for path in guarded.folder.rglob("*") if path.is_file() and path.name != "auth.ini"
    }
    assert {"outputs.log", "server.log", "mlflow.log", "server.json"} <= {path.name for path in written}
    for pid in processes_of(home):
        written |= {
            place: place.read_bytes() for place in (Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ"))
        }
    token = access.admin_headers(home)["Authorization"].partition(" ")[2]
    for password in (*PASSWORDS.values(), "a-wrong-one", b64decode(token).decode().partition(":")[2]):
        found = {str(path) for path, content in written.items() if password.encode() in content}
        assert not found
    assert token.encode() not in b"".join(written.values())
    for name in ("auth.ini", "session.key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600


def test_a_server_that_is_away_is_told_at_once(ports, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{ports[0]}")
    with pytest.raises(CalmlflowError, match=rf"no MLflow server answers at http://127.0.0.1:{ports[0]}; expected one"):
        access.list_users()
