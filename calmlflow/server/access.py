"""Give users of a server with MLflow's basic-auth their roles, and hold the roles apart."""

import base64
import configparser
import os
import re
import secrets
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.files import replacing

ADMIN = "admin"
# Role -> (kind of thing, permission) of all things of the kind in a workspace. USE of the workspace lets make new ones.
_TRAINS = (("workspace", "USE"), ("experiment", "EDIT"))
ROLES = {
    "reader": (("experiment", "READ"), ("registered_model", "READ")),
    # To register a version needs EDIT on the model; READ on its versions keeps stages and history from trainers.
    "trainer": (*_TRAINS, ("registered_model", "EDIT"), ("registered_model_version", "READ")),
    "promoter": (*_TRAINS, ("registered_model", "MANAGE")),
}
# What a trainer asks of a registered model; all other requests that change one need MANAGE, see `authorize`.
_FOR_TRAINERS = {"create", "search", "get-latest-versions"}
# Programs, secrets and data of the server's that calmlflow has no use for, and the grants of rights.
_CLOSED = re.compile(r"(/(ajax-)?api/[\d.]+/mlflow)?/(assistant|demo|gateway|genai|scorer|users/permissions)\b")
_HOW = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


# -- The server's side ----------------------------------------------------------------------------------------------


def write_config(home: Path, database_uri: str) -> str | None:
    """Write MLflow's configuration of basic-auth into the home; gives the admin's password where it is a new one."""
    path = home / "auth.ini"
    kept = _admin_password(home)
    password = kept or secrets.token_urlsafe(24)
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        # MLflow interpolates.
        "database_uri": database_uri.replace("%", "%%"),
        "admin_username": ADMIN,
        "admin_password": password,
        "authorization_function": f"{__name__}:{authorize.__name__}",
        # Else each request hashes the password anew, which takes a tenth of a second.
        "auth_cache_ttl_seconds": "60",
    }
    with replacing(path, private=True) as file:
        config.write(file)
    return None if kept else password


def _admin_password(home: Path) -> str | None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(home / "auth.ini")
    return config.get("mlflow", "admin_password", fallback=None)


def reset_admin(home: Path, database_uri: str) -> None:
    """Give the admin of a database that was restored the password of the home's configuration."""
    from mlflow.server.auth.sqlalchemy_store import generate_password_hash

    change = sa.text("UPDATE users SET password_hash = :hash WHERE username = :name")
    with sa.create_engine(database_uri, poolclass=sa.NullPool).begin() as connection:
        connection.execute(change, {"hash": generate_password_hash(str(_admin_password(home))), "name": ADMIN})


def admin_headers(home: Path) -> dict[str, str]:
    """Headers of HTTP that log the admin in, for requests to the server of the home."""
    token = base64.b64encode(f"{ADMIN}:{_admin_password(home)}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def authorize() -> Any:
    """Ask for name and password, and for MANAGE where a request changes aliases, name or tags of a registered model.

    MLflow calls it for every request, and takes a name and password, or an answer of Flask's. Alone it would let EDIT
    do, which trainers have, and let promoters make promoters.
    """
    from flask import Response, request
    from mlflow.server import auth
    from mlflow.server.auth.requirements import Requirement

    user = auth.authenticate_request_basic_auth()
    # Of a DELETE that is not JSON, MLflow would ask for rights on what the query names, and delete what the body names.
    is_odd = request.method == "DELETE" and not request.is_json and request.get_data()
    is_closed = is_odd or _CLOSED.match(request.path)
    _, is_model, act = request.path.partition("/mlflow/registered-models/")
    is_move = is_model and request.method != "GET" and act.rstrip("/") not in _FOR_TRAINERS
    if isinstance(user, Response) or not (is_closed or is_move) or auth.store.get_user(str(user.username)).is_admin:
        return user
    body = request.get_json(silent=True)
    model = ("registered_model", str(body.get("name", "") if isinstance(body, dict) else ""))
    may = not is_closed and auth.authorize(str(user.username), model, [Requirement(*model, "manage")])
    return user if may else auth.make_forbidden_response()


# -- The admin's side -----------------------------------------------------------------------------------------------


def log_in(home: Path) -> None:
    """Let the requests below come from the admin of the home's server, where the environment names nobody."""
    password = _admin_password(home)
    if password and not os.environ.get("MLFLOW_TRACKING_USERNAME"):
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = ADMIN, password


def add_user(name: str, role: str, password: str | None = None) -> Path | None:
    """Make a user with one of `ROLES`, or give an old one that role alone; gives the file of a generated password.

    ``password``, where given, is that of the user from now on.
    """
    if role not in ROLES:
        raise InputError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
    if name == ADMIN or not re.fullmatch(r"[\w.@+-]{1,64}", name):
        raise InputError(
            f"{name[:64]!r} cannot be a user's name; expected letters, digits and . @ + - _, not {ADMIN!r}"
        )
    if password is not None and len(password) < 12:
        raise InputError("the user's password is too short; expected 12 characters or more")
    wanted = _prepare_role(role)
    # Who makes a model may manage it, so a trainer could promote.
    models = _ask("GET", "2.0/mlflow/registered-models/search", max_results=1000).get("registered_models", ())
    for model in {settings.BUNDLE_MODEL, *settings.NETWORK_MODELS.values()}.difference(m["name"] for m in models):
        _ask("POST", "2.0/mlflow/registered-models/create", name=model)
    users = _users()
    made = None
    if name not in users:
        if password is None:
            password, made = secrets.token_urlsafe(24), settings.home().absolute() / "users" / name
            with replacing(made, private=True) as file:
                file.write(f"{password}\n")
        try:
            _ask("POST", "2.0/mlflow/users/create", username=name, password=password)
        except BaseException:
            if made:
                made.unlink(missing_ok=True)
            raise
    elif password is not None:
        _ask("PATCH", "2.0/mlflow/users/update-password", username=name, password=password)
    held = users.get(name, {})
    for known, role_id in ({role: wanted} | held).items():
        if (known in held) != (known == role):
            verb, act = ("POST", "assign") if known == role else ("DELETE", "unassign")
            _ask(verb, f"3.0/mlflow/roles/{act}", username=name, role_id=role_id)
    return made


def list_users() -> dict[str, str]:
    """Every user but the admin, and the role in the workspace; ``none`` where it is none of `ROLES`."""
    return {name: next(iter(held), "none") for name, held in sorted(_users().items()) if name != ADMIN}


def remove_user(name: str) -> None:
    """Remove a user with all rights; from now on the password is refused."""
    known = list_users()
    if name not in known:
        raise InputError(f"the server has no user {name!r}; expected one of: {', '.join(known) or 'none yet'}")
    _ask("DELETE", "2.0/mlflow/users/delete", username=name)
    (settings.home() / "users" / name).unlink(missing_ok=True)


def _workspace() -> str:
    return settings.workspace() or "default"


def _users() -> dict[str, dict[str, int]]:
    """User -> the roles of ours that they hold in the workspace, and their numbers."""
    return {
        user["username"]: {
            role["name"]: int(role["id"])
            for role in user["roles"]
            if role["workspace"] == _workspace() and role["name"] in ROLES
        }
        for user in _ask("GET", "2.0/mlflow/users/list")["users"]
    }


def _prepare_role(name: str) -> int:
    """The number of a role in the workspace, made or completed where it is not whole."""
    known = _ask("GET", "3.0/mlflow/roles/list", workspace=_workspace())["roles"]
    role = next((role for role in known if role["name"] == name), None)
    role = role or _ask("POST", "3.0/mlflow/roles/create", name=name, workspace=_workspace())["role"]
    has = {(held["resource_type"], held["permission"]) for held in role.get("permissions") or ()}
    for kind, permission in ROLES[name]:
        if (kind, permission) not in has:
            grant = {"resource_type": kind, "resource_pattern": "*", "permission": permission}
            _ask("POST", "3.0/mlflow/roles/permissions/add", role_id=role["id"], **grant)
    return int(role["id"])


def _ask(method: str, path: str, **words: Any) -> Any:
    """One request to the server, with the credentials of MLflow's variables."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    uri = settings.tracking_uri()
    kind = "params" if method == "GET" else "json"
    try:
        response = http_request(get_default_host_creds(uri), f"/api/{path}", method, max_retries=0, **{kind: words})
    except MlflowException as error:
        raise CalmlflowError(f"no MLflow server answers at {uri}; expected one that was started with --auth") from error
    if response.status_code in (401, 403):
        raise CalmlflowError(f"the server {uri} does not let you manage users; expected its admin: {_HOW}")
    if response.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" not in response.text:
        raise CalmlflowError(f"the server {uri} has no users; expected one that was started with --auth")
    return verify_rest_response(response, path).json()
