"""Answer live jobs again with the challenger, once their answers are out, to judge it by what becomes of the jobs."""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from calmlflow import settings
from calmlflow.hst.features import Features
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.emit import Emitter, prediction_record
from calmlflow.predictor.logs import place_of

log = logging.getLogger(__name__)

# Answers that may wait; of more the oldest are given up.
MOST_WAITING = 1000
# Seconds between an answer and its shadow, so that the caller has the answer, and a thread serves many.
PAUSE_S = 0.1
# Seconds after which a stage without a version is asked again.
RETRY_S = 300.0


class Shadow:
    """Answers of another stage to jobs that are answered already; kept with ``source`` shadow.

    An answer never waits for its shadow: it is computed, logged and recorded before the shadow hears of it, and the
    shadow works in a thread of its own, with a predictor and a cache of its own. Whatever fails or hangs there costs
    shadow answers only. The two share the processor.

    AWS Lambda freezes this thread with the instance when the call ends, and lets it go on in the next call, most of
    which waits for S3. Nothing is done at the end of a call, because the caller would wait for it. So the shadow of an
    instance's last call is lost, and a record bears the time at which it was made: one made after the end of its job
    does not count.

    Parameters
    ----------
    open_predictor : callable
        Gives the `Predictor` of the shadow stage. Called in the thread, again after `RETRY_S` where it fails.
    emit : callable
        Keeps a record, see `calmlflow.predictor.emit`.
    """

    def __init__(self, open_predictor: Callable[[], Any], emit: Emitter):
        self._open, self._emit = open_predictor, emit
        self._predictor: Any = None
        self._next_try = 0.0
        self._waiting: deque[tuple[str, Features, str | None]] = deque(maxlen=MOST_WAITING)
        self._thread: threading.Thread | None = None
        # Outcome -> answers: kept, same (the shadow stage holds the version that answered), failed.
        self.outcomes: Counter[str] = Counter()

    def follow(self, dataset: str, features: Features, version: str | None) -> None:
        """Answer a job, that this version has answered, a moment later. Neither waits nor raises."""
        self._waiting.append((dataset, features, version))
        # After a fork, the child sees a thread that has ended.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Timer(PAUSE_S, self._answer_waiting)
            self._thread.daemon = True
            # Where it cannot start, the next answer tries again.
            with contextlib.suppress(RuntimeError):
                self._thread.start()

    def _answer_waiting(self) -> None:
        while self._waiting:
            # Another thread may have been quicker.
            with contextlib.suppress(IndexError):
                job = self._waiting.popleft()
                try:
                    self.outcomes[self._answer(*job)] += 1
                except Exception as error:
                    log.warning("no shadow answer to %s (%s)", job[0], place_of(error))
                    self.outcomes["failed"] += 1
            # An answer that is being given shares the interpreter with one shadow, not with many.
            time.sleep(PAUSE_S / 50)
            # From now on an answer starts another thread; one that came just before this is seen by the loop.
            if not self._waiting and self._thread is threading.current_thread():
                self._thread = None

    def _answer(self, dataset: str, features: Features, version: str | None) -> str:
        if self._predictor is None:
            if time.monotonic() < self._next_try:
                return "failed"
            self._next_try = time.monotonic() + RETRY_S
            self._predictor = self._open()
        self._predictor.look(RETRY_S)
        serving = self._predictor.serving
        if serving.version == version:
            return "same"
        answer = {**serving.answer(dataset, features), "source": settings.SHADOW}
        ladder = serving.bundle.ladder if serving.bundle else LADDER
        self._emit(prediction_record(dataset, features, answer, time.time(), ladder))
        return "kept"
