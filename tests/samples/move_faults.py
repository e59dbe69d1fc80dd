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
from functools import partial
from typing import Any

import mlflow.utils.request_utils
import requests
from mlflow import MlflowClient

from calmlflow.errors import CalmlflowError
from calmlflow.registry.overview import problems
from calmlflow.registry.promote import promote, repair, roll_back
from calmlflow.registry.versions import read_state

NUMBERS = itertools.count()


def new_model(prefix: str, versions: int) -> str:
    """A registered model with version 1 in Production and more versions in Staging and None."""
    name, client = f"{prefix}-{next(NUMBERS)}", MlflowClient()
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, SOURCE, RUN, {"model_sha256": DIGEST}, await_creation_for=0)
    promote(read_state(name), 1, "Production")
    promote(read_state(name), 2, "Staging")
    return name


def forked(work: Callable[[], object], kill_before: int | None = None) -> Callable[[], str]:
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
            words = f"done {work()}"
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


def promote_again(model: str) -> object:
    """What `calmlflow promote` does after its gate."""
    state = read_state(model)
    return repair(model) if state.stages[2] == "Production" else promote(state, 2, "Production", run_id="abc")


def described(model: str) -> dict[str, Any]:
    state = read_state(model)
    return {
        "stages": {str(version): stage for version, stage in state.stages.items()},
        "aliases": state.aliases,
        "events": [[event.action, event.version, event.stage, event.before, event.run_id] for event in state.events],
        "problems": problems(state),
    }


def kill_everywhere(prefix: str, action: str, mend: str) -> list[dict[str, Any]]:
    """One line per step: what a kill left behind, and what it was after the mending."""
    lines = []
    for step in itertools.count(1):
        model = new_model(prefix, 2)
        work = partial(promote_again, model)
        if action == "rollback":
            work()
            work = partial(roll_back, model, None, "a test")
        words = forked(work, kill_before=step)()
        left = described(model)
        said = forked(partial(repair, model) if mend == "repair" else work)()
        lines.append({"words": words, "left": left, "said": said, "after": described(model)})
        if words != "killed":
            return lines
    raise AssertionError


def at_once(prefix: str, times: int) -> list[dict[str, Any]]:
    """Versions 2 and 3 are promoted by two processes that saw the same state."""
    lines = []
    for _ in range(times):
        model = new_model(prefix, 3)
        seen = read_state(model)
        start = time.time() + 0.05

        def contend(version: int, seen: Any = seen, start: float = start) -> int:
            with suppress(ValueError):
                time.sleep(start - time.time())
            return promote(seen, version, "Production").version

        waits = [forked(partial(contend, version)) for version in (2, 3)]
        lines.append({"words": [wait() for wait in waits], "after": described(model)})
    return lines


if __name__ == "__main__":
    what, prefix, SOURCE, RUN, DIGEST, *rest = sys.argv[1:]
    print(json.dumps(kill_everywhere(prefix, *rest) if what == "kill" else at_once(prefix, int(rest[0]))))
