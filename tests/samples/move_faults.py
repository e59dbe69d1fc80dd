"""Run as a script: moves of versions that are killed at every step, or made by two processes at once. Prints JSON.

Each move is made by a forked child, so that MLflow need be imported only once.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import mlflow.utils.request_utils
import requests
from mlflow import MlflowClient

from calmlflow.errors import CalmlflowError
from calmlflow.registry.claim import PREFIX as CLAIMS
from calmlflow.registry.moves import finish_open, repair
from calmlflow.registry.promote import promote, roll_back
from calmlflow.registry.versions import read_state

NUMBERS = itertools.count()


def new_model(client: MlflowClient, prefix: str, versions: int) -> str:
    """A registered model with version 1 in Production and more versions in Staging and None."""
    name = f"{prefix}-{next(NUMBERS)}"
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, "s3://calcloud-artifacts/of-a-test", await_creation_for=0)
    promote(client, name, 1, "Production", read_state(client, name))
    promote(client, name, 2, "Staging", read_state(client, name))
    return name


def forked(work: Callable[[], str], kill_before: int | None = None) -> Callable[[], str]:
    """Start work in a child, killed before its n-th write; gives what waits for its words, "killed" without any."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # The parent's connections are not the child's to use.
        mlflow.utils.request_utils._cached_get_request_session.cache_clear()
        real, count = requests.Session.send, itertools.count(1)

        def send(session: requests.Session, request: Any, **options: Any) -> requests.Response:
            # Only a write changes what is left behind.
            if request.method != "GET" and next(count) == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(session, request, **options)

        requests.Session.send = send
        try:
            words = work()
        except CalmlflowError as error:
            words = f"{type(error).__name__}: {error}"
        except BaseException as error:
            words = f"bug: {error!r}"
        os.write(writing, words.encode())
        os._exit(0)
    os.close(writing)

    def wait() -> str:
        with os.fdopen(reading) as pipe:
            words = pipe.read()
        os.waitpid(child, 0)
        return words or "killed"

    return wait


def promote_again(client: MlflowClient, model: str) -> str:
    """What the command does: finish what is open, and promote if there is still something to promote."""
    finish_open(client, model)
    state = read_state(client, model)
    if state.stages[2] != "Production":
        promote(client, model, 2, "Production", state)
    return "done"


def back_again(client: MlflowClient, model: str) -> str:
    """A rollback that is repeated: what was cut short is finished; else it is made."""
    finish_open(client, model)
    if read_state(client, model).held_by("Production") == 2:
        roll_back(client, model, None, "a test")
    return "done"


def described(client: MlflowClient, model: str) -> dict[str, Any]:
    state = read_state(client, model)
    tags = client.get_registered_model(model).tags
    return {
        "stages": {str(version): stage for version, stage in sorted(state.stages.items())},
        "aliases": state.aliases,
        "events": [[event.action, event.version, event.stage, event.before, event.is_open] for event in state.events],
        "claims": sum(key.startswith(CLAIMS) for key in tags),
        "tags": {version: sorted(client.get_model_version(model, version).tags) for version in "12"},
    }


def kill_everywhere(client: MlflowClient, prefix: str, action: str, mend: str) -> list[dict[str, Any]]:
    """One line per step: what a kill left behind, and what it was after the mending."""
    lines = []
    for step in itertools.count(1):
        model = new_model(client, prefix, 2)
        work = {"promotion": promote_again, "rollback": back_again}[action]
        if action == "rollback":
            promote_again(client, model)
        words = forked(lambda work=work, model=model: work(client, model), kill_before=step)()
        left = described(client, model)
        if mend == "repair":
            said = forked(lambda model=model: "; ".join(repair(client, model)) or "nothing")()
        else:
            said = forked(lambda work=work, model=model: work(client, model))()
        lines.append({"step": step, "words": words, "left": left, "said": said, "after": described(client, model)})
        if words != "killed":
            return lines
    raise AssertionError


def at_once(client: MlflowClient, prefix: str, times: int) -> list[dict[str, Any]]:
    """Versions 2 and 3 are promoted by two processes that saw the same state."""
    lines = []
    for _ in range(times):
        model = new_model(client, prefix, 3)
        seen = read_state(client, model)
        start = time.time() + 0.05

        def contend(version: int, model: str = model, seen: Any = seen, start: float = start) -> str:
            with suppress(ValueError):
                time.sleep(start - time.time())
            return f"won {promote(client, model, version, 'Production', seen).version}"

        waits = [forked(lambda version=version: contend(version)) for version in (2, 3)]
        lines.append({"words": [wait() for wait in waits], "after": described(client, model)})
    return lines


if __name__ == "__main__":
    what, uri, prefix, *rest = sys.argv[1:]
    api = MlflowClient(uri, uri)
    found = kill_everywhere(api, prefix, *rest) if what == "kill" else at_once(api, prefix, int(rest[0]))
    print(json.dumps(found))
