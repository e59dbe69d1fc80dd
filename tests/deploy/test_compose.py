"""The containers of deploy/compose.yaml: the schema, what they let in, and that what they run works together."""

# There is no Docker here: the slow test runs the commands of the file side by side, on real parts, the server's on a
# root that cannot be written.

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml

from calmlflow.server import database, processes
from calmlflow.server.processes import wait_until
from tests.conftest import free_ports
from tests.samples.commands import ROOT, started
from tests.samples.container_commands import check_command, command_of, last

PATH = ROOT / "deploy" / "compose.yaml"
COMPOSE = yaml.safe_load(PATH.read_text())
SERVICES = COMPOSE["services"]
HEALTH = command_of(last(ROOT / "deploy" / "server" / "Dockerfile", "HEALTHCHECK"))
SECRETS = {"POSTGRES_PASSWORD": "of-the-database", "S3_SECRET_KEY": "of-the-store"}
# Binds what a container may write, and makes all else read-only.
READ_ONLY = 'for path in "$0" "$1"; do mount --bind "$path" "$path"; done; shift; mount -o remount,ro,bind /; exec "$@"'


def filled(text: str) -> str:
    """A text with the secrets, and with defaults elsewhere, as Docker Compose fills it."""
    return re.sub(r"\$\{(\w+):([-?])([^}]*)\}", lambda found: SECRETS[found[1]] if found[2] == "?" else found[3], text)


def test_the_schema_of_compose_holds():
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(PATH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_no_password_has_a_default_and_one_port_is_open_on_loopback():
    secret = [
        value
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if re.search("PASSWORD|SECRET", name)
    ]
    assert len(secret) == 4
    assert all(re.fullmatch(r"\$\{\w+:\?[^}]+\}", value) for value in secret)
    assert {name: filled(port) for name in SERVICES for port in SERVICES[name].get("ports", [])} == {
        "server": "127.0.0.1:5000:5000"
    }
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert not [name for name, service in SERVICES.items() if service.get("privileged") or "latest" in service["image"]]


def test_the_server_is_confined_and_all_that_stays_up_has_a_health_check_and_a_volume():
    for name, service in SERVICES.items():
        assert "no-new-privileges:true" in service["security_opt"]
        if service["image"] == "calmlflow-server":
            assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
            check_command(service["command"])
        if service["restart"] != "no":
            assert "healthcheck" in service or "build" in service, name
            (volume,) = service["volumes"]
            assert volume.partition(":")[0] in COMPOSE["volumes"]
    check_command(HEALTH)


def confined(home: Path, scratch: Path, command: list[str]) -> list[str]:
    """The command with a root that cannot be written, where this process may make one."""
    may = os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    return [*(["unshare", "-m", "sh", "-ec", READ_ONLY, str(home), str(scratch)] if may else []), *command]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("wget"), reason="wget")
def test_the_containers_work_together(postgres_uri, tmp_path, monkeypatch):
    import mlflow

    data, home, scratch = (tmp_path / name for name in ("data", "home", "scratch"))
    for folder in (data, home, scratch):
        folder.mkdir()
    (port,) = free_ports(1)
    ports = processes.store_ports({port})
    s3, master, volume, filer, _ = ports
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "CALMLFLOW_"))}
    outside = {
        "s3:8333": f"127.0.0.1:{s3}",
        "/data": str(data),
        "=8333": f"={s3}",
        ":8333": f":{s3}",
        "9333": str(master),
    }
    outside |= {
        "postgresql+psycopg://mlflow@database/mlflow": database.read_backend(postgres_uri),
        "0.0.0.0": "127.0.0.1",
    }

    def words(listed: list[str]) -> list[str]:
        for inside, here in outside.items():
            listed = [filled(word).replace(inside, here) for word in listed]
        return listed

    def environment(name: str) -> dict[str, str]:
        given = SERVICES[name].get("environment", {})
        return kept | {"NO_PROXY": "127.0.0.1"} | dict(zip(given, words(list(given.values())), strict=True))

    def succeeds(command: list[str], **options) -> bool:
        return subprocess.run(command, capture_output=True, timeout=120, **options).returncode == 0

    store = ["weed", *words(SERVICES["s3"]["command"]), f"-master.port={master}", f"-volume.port={volume}"]
    log = (tmp_path / "store.log").open("wb")
    with started([*store, f"-filer.port={filer}"], env=environment("s3"), stdout=log, stderr=log):
        try:
            assert wait_until(lambda: succeeds(words(SERVICES["s3"]["healthcheck"]["test"][1:])), 60)
            bucket = [*SERVICES["bucket"]["entrypoint"], *words(SERVICES["bucket"]["command"])]
            # At each `up` anew.
            assert wait_until(lambda: succeeds(bucket, env=kept), 60)
            assert succeeds(bucket, env=kept)

            ours = environment("server") | {"HOME": str(home), "CALMLFLOW_HOME": str(home), "TMPDIR": str(scratch)}
            serve = confined(home, scratch, [*words(SERVICES["server"]["command"]), "--port", str(port)])
            with started(serve, env=ours, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
                check = confined(home, scratch, HEALTH)
                assert wait_until(lambda: succeeds(check, env=ours) or server.poll() is not None, 180)
                assert server.poll() is None, server.stderr.read()
                users = confined(home, scratch, SERVICES["users"]["command"])
                for _ in range(2):
                    assert succeeds(users, env={**kept, **{name: ours[name] for name in ("HOME", "CALMLFLOW_HOME")}})

                monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "trainer")
                monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", (home / "users" / "trainer").read_text().strip())
                client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
                run = client.create_run(client.get_experiment_by_name("calcloud").experiment_id)
                client.log_text(run.info.run_id, "kept", "kept.txt")
                monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
                monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
                with pytest.raises(mlflow.MlflowException, match="401"):
                    client.get_run(run.info.run_id)
                server.send_signal(signal.SIGTERM)
                assert server.wait(90) == 0
            key = {"aws_access_key_id": ours["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": SECRETS["S3_SECRET_KEY"]}
            bucket_client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3}", region_name="us-east-1", **key)
            (kept_object,) = bucket_client.list_objects_v2(Bucket="mlflow", Prefix="artifacts/")["Contents"]
            assert kept_object["Key"].endswith(f"{run.info.run_id}/artifacts/kept.txt")
        finally:
            processes.remove_sockets(ports)
