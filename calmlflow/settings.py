"""Name the models, stages, addresses and environment variables of calmlflow; the standard library is enough."""

import json
import math
import os
import re
from pathlib import Path
from urllib.parse import unquote

from calmlflow.errors import InputError

# -- Networks, targets and registered models ------------------------------------------------------------------------

TARGETS = {"mem_clf": "mem_bin", "mem_reg": "memory", "wall_reg": "wallclock"}
"""Network -> target. Networks name the folders of models, targets the folders of results."""

NETWORKS = tuple(TARGETS)

NETWORK_MODELS = {"mem_clf": "calcloud-mem-bin", "mem_reg": "calcloud-memory", "wall_reg": "calcloud-wallclock"}
"""Network -> registered model."""

BUNDLE_MODEL = "calcloud-predictor"
"""Registered model of the bundle: the unit that is promoted, served and pulled."""


def parse_networks(text: str) -> tuple[str, ...]:
    """The networks named by ``all`` or by names with commas between, theirs or their targets', in order."""
    of_target = {target: network for network, target in TARGETS.items()}
    named = {of_target.get(name, name) for name in map(str.strip, text.split(","))}
    if named == {"all"}:
        return NETWORKS
    if unknown := sorted(named - set(NETWORKS)):
        raise InputError(
            f"network {unknown[0]!r} does not exist; expected all, or some of {', '.join(NETWORKS)} with commas between"
        )
    return tuple(network for network in NETWORKS if network in named)


STAGES = ("None", "Staging", "Production", "Archived")


def parse_stage(text: str) -> str:
    """Fold a stage's name to MLflow's spelling; an InputError lists the stages that a version can be promoted to."""
    for stage in STAGES[1:]:
        if text.strip().lower() == stage.lower():
            return stage
    raise InputError(f"stage {text!r} does not exist; expected one of {', '.join(STAGES[1:])}")


LATEST = "latest"
CHOICES = f"a stage ({', '.join(STAGES[1:])}), the number of a version, an alias or {LATEST}"


def parse_choice(text: str) -> str:
    """Fold what names a version to ``Production``, ``7``, ``latest`` or ``@alias``; an alias may lack its ``@``."""
    name = text.strip()
    if re.fullmatch("[0-9]{1,18}", name):
        return str(int(name))
    if name.lower() == LATEST:
        return LATEST
    if name.lower() in {stage.lower() for stage in STAGES[1:]}:
        return parse_stage(name)
    if not re.fullmatch(r"@?[\w-]{1,100}", name):
        raise InputError(f"{text[:100]!r} names no version; expected {CHOICES}")
    return f"@{name.removeprefix('@')}"


EXPERIMENT = "calcloud"
"""MLflow experiment of the entry points, where ``MLFLOW_EXPERIMENT_NAME`` names no other."""

HEALTH_EXPERIMENT = "calcloud-health"
"""MLflow experiment that keeps what `calmlflow jobs status` finds."""

SHADOW = "shadow"
"""``source`` of a recorded prediction that no job ran with, see `calmlflow.predictor.shadow`."""

# -- The server -----------------------------------------------------------------------------------------------------

HOST = "127.0.0.1"
MLFLOW_PORT = 5000
MLFLOW_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
"""Variables of MLflow's client, where the user sets none: waits of 0, 4, 8, 16 and 32 s, a minute in all.

Its own last 12 minutes.
"""
S3_PORT = 8333
ARTIFACT_BUCKET = "calcloud-artifacts"
JOBS_BUCKET = "calcloud-processing"
"""Bucket of the embedded S3 server that stands in for calcloud's processing bucket (control files, outputs)."""

DATABASE_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg", "postgres", "dynamodb")
"""URIs of stores of job records that are databases begin with one of these."""

# -- Limits of the answer -------------------------------------------------------------------------------------------

KILL_TIME_MIN_S = 60
KILL_TIME_MAX_S = 172_800

# -- Environment ----------------------------------------------------------------------------------------------------
# ``CALMLFLOW_LADDER`` is read by `calmlflow.hst.ladder`, which may import nothing from here.


def home() -> Path:
    """Folder of the embedded server's data and of the predictor's cache: ``CALMLFLOW_HOME``, default ``.calmlflow``."""
    return Path(os.environ.get("CALMLFLOW_HOME") or ".calmlflow")


def cache_dir() -> Path:
    """Folder of downloaded bundles: ``CALMLFLOW_CACHE``, default ``cache`` in `home`."""
    value = os.environ.get("CALMLFLOW_CACHE")
    return Path(value) if value else home() / "cache"


def tracking_uri() -> str:
    """The MLflow server: ``MLFLOW_TRACKING_URI``, default where the embedded server of `home` was last started."""
    return _address("MLFLOW_TRACKING_URI") or f"http://{HOST}:{_embedded_port()}"


def _address(name: str) -> str:
    """An address of the environment; an InputError where a blank or a line end came with it, as from a Windows file."""
    value = os.environ.get(name, "")
    if value != value.strip():
        raise InputError(
            f"environment variable {name} is {hide_password(value)!r}; expected an address without blanks or line ends "
            "around it"
        )
    return value


def _embedded_port() -> int:
    try:
        return int(json.loads((home() / "server.json").read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return MLFLOW_PORT


def registry_uri() -> str:
    """The model registry: ``MLFLOW_REGISTRY_URI``, default `tracking_uri`."""
    return _address("MLFLOW_REGISTRY_URI") or tracking_uri()


def workspace() -> str:
    """Workspace of the MLflow server: ``MLFLOW_WORKSPACE``, default empty."""
    return check_header("MLFLOW_WORKSPACE", os.environ.get("MLFLOW_WORKSPACE", "").strip())


def check_header(name: str, value: str) -> str:
    """The value of a variable; an InputError, without it, where it cannot be sent as a header of HTTP."""
    if not (value.isascii() and value.isprintable()):
        what = "a line break" if re.search(r"[\r\n]", value) else "a character that no header of HTTP may hold"
        raise InputError(f"environment variable {name} holds {what}; expected printable ASCII characters")
    return value


def stage() -> str:
    """What the Lambda handler answers from, see `parse_choice`: ``CALMLFLOW_STAGE``, default Production."""
    return os.environ.get("CALMLFLOW_STAGE") or "Production"


def shadow_stage() -> str:
    """What the Lambda handler answers from as well, once an answer is out, and whose recorded answers the gate judges
    by: ``CALMLFLOW_SHADOW_STAGE``, default none.
    """
    return os.environ.get("CALMLFLOW_SHADOW_STAGE", "")


def timeout_s() -> float:
    """Seconds the predictor waits for a version of the registry, or for S3: ``CALMLFLOW_TIMEOUT``, default 2."""
    value = os.environ.get("CALMLFLOW_TIMEOUT") or "2"
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise InputError(f"environment variable CALMLFLOW_TIMEOUT is {value!r}; expected seconds above 0, 3600 at most")
    return seconds


def policy_fallback() -> bool:
    """Whether the Lambda handler answers by policy where no bundle can be had: ``CALMLFLOW_POLICY_FALLBACK``, true or
    false (default).
    """
    value = os.environ.get("CALMLFLOW_POLICY_FALLBACK", "").strip().lower() or "false"
    if value not in ("true", "false"):
        raise InputError(f"environment variable CALMLFLOW_POLICY_FALLBACK is {value!r}; expected true or false")
    return value == "true"


def baked_bundle() -> Path | None:
    """Folder of a bundle that was put into an image, see ``deploy/lambda``: ``CALMLFLOW_BUNDLE``, default none."""
    value = os.environ.get("CALMLFLOW_BUNDLE")
    return Path(value) if value else None


def has_registry() -> bool:
    """Whether the environment names a registry, or an embedded server of `home` does."""
    named = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return bool(named) or (home() / "server.json").is_file()


def emit_uri() -> str:
    """Place of every prediction: ``CALMLFLOW_EMIT``, ``s3://bucket/prefix`` or (not Lambda) a store; default none."""
    return os.environ.get("CALMLFLOW_EMIT", "")


def jobs_uri() -> str:
    """Store of job records: ``CALMLFLOW_JOBS``, default ``sqlite:///`` and ``jobs.db`` in `home`."""
    return os.environ.get("CALMLFLOW_JOBS") or f"sqlite:///{home().absolute() / 'jobs.db'}"


def user_password() -> str | None:
    """Password that `calmlflow server user add` sets: ``CALMLFLOW_USER_PASSWORD``, default none (one is generated)."""
    return os.environ.get("CALMLFLOW_USER_PASSWORD") or None


# -- Passwords ------------------------------------------------------------------------------------------------------

_NAMES = "(?:pass(?:word|wd)|pwd|secret|token|signature|credential|api[_-]?key|access[_-]?key)"
_SECRET_KEYS = re.compile(f"(?i){_NAMES}")
# A user's name alone may be a token.
_HTTP_USER = re.compile(r"(?i)(https?://)[^/?#\s]*@")
# In a text, a URI ends at a space; a URI alone may hold some. Passwords of databases hold unescaped slashes and @.
_PARAMETER = re.compile(r"(?<=[?&;])([^=&;#\s]+)=(?!\*\*\*)[^&;#\s]+")
_WHOLE_PARAMETER = re.compile(r"(?<=[?&;])([^=&;#\s]+)=(?!\*\*\*)[^&;#]+")
_USER = re.compile(r"(?<!/)(?<!http:)(?<!https:)(//[^/?#:@\s]*):\S+@")
_WHOLE_USER = re.compile(r"(?is)^(\s*(?!https?:)[a-z][a-z0-9+.-]+://[^/?#:@]*):(?!\*\*\*@)(?:(?!://).)+@")
# name=value and "name": "value" in a text, the headers of HTTP, and the identifiers of AWS keys.
_ASSIGNED = re.compile(
    rf"""(?i)({_NAMES}[\w.-]{{0,40}}["']?\s*[:=]\s*)(?!["']?\*\*\*)(?:"[^"]*"?|'[^']*'?|[^\s,;&"'()\]{{}}]+)"""
)
_HEADER = re.compile(r"""(?i)(\bauthorization["']?\s*[:=]\s*["']?)(?:[\w-]+ +)?[^\s"',}]+""")
_BEARER = re.compile(r"""(?i)(\bbearer\s+)[^\s"',}]{6,}""")
_AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}")


def hide_password(text: str) -> str:
    """Replace passwords, tokens and AWS keys in a URI or a text by ``***``, for logs, parameters and errors."""
    text = _AWS_KEY.sub("***", _hide_in_uris(text))
    for pattern in (_HEADER, _BEARER, _ASSIGNED):
        text = pattern.sub(r"\1***", text)
    return text


def _hide_in_uris(text: str) -> str:
    text = _USER.sub(r"\1:***@", _WHOLE_USER.sub(r"\1:***@", _HTTP_USER.sub(r"\1***@", text)))
    is_uri = re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+://", text)
    return (_WHOLE_PARAMETER if is_uri else _PARAMETER).sub(_hidden_parameter, text)


def _hidden_parameter(found: re.Match[str]) -> str:
    # A database reads the name of a parameter with its percent signs decoded.
    return f"{found[1]}=***" if _SECRET_KEYS.search(unquote(found[1])) else found[0]


def refuse_password(uri: str) -> None:
    """Raise an InputError where a URI holds a password: MLflow shows the parameters of a run to everybody."""
    # Of addresses alone: a reason may speak of a token.
    if _AWS_KEY.sub("", _hide_in_uris(uri)) != uri:
        raise InputError(
            f"the address {hide_password(uri)} holds a password, which MLflow has written down by now; expected none: "
            "set PGPASSWORD or write ~/.pgpass, and change that password"
        )
