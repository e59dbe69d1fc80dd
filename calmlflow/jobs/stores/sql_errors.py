"""What is said of a failure in a SQL database: in our words, since a driver's may quote a password."""

from collections.abc import Iterator
from contextlib import contextmanager

from calmlflow.errors import CalmlflowError

_LIBRARIES = ("sqlalchemy", "sqlite3", "psycopg", "pyarrow")

_REASONS = {
    "SQLITE_NOTADB": "it is no SQLite database",
    "SQLITE_FULL": "no space left on device",
    "SQLITE_BUSY": "somebody else has been writing for too long",
    "SQLITE_READONLY": "it can be read only",
    "SQLITE_READONLY_DIRECTORY": "its folder can be read only, and who reads needs to write there too",
    "SQLITE_CANTOPEN": "no such file, or no permission",
    "28P01": "wrong user or password",
    "28000": "this user may not log in",
    "3D000": "there is no such database",
    "3F000": "there is no such schema",
    "42501": "permission denied",
    "53100": "its disk is full",
    "22021": "a text holds a NUL character",
    "22P05": "a text holds a character that its encoding has not",
    # Said by psycopg itself, which knows of no other text that cannot be sent.
    "DataError": "a text holds a NUL character",
    "OperationalError": "no answer",
    "ArrowInvalid": "a cell is of another kind than its column",
    "ArrowTypeError": "a cell is of another kind than its column",
}


@contextmanager
def telling(name: str, act: str) -> Iterator[None]:
    """Turn what a driver raises in the block into a CalmlflowError: one sentence with the name of the store."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "orig", None) or error
        if type(cause).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or type(cause).__name__
        # SQLite has finer codes, such as SQLITE_BUSY_SNAPSHOT.
        reason = _REASONS.get(code) or _REASONS.get("_".join(code.split("_")[:2]), code)
        # Who is not let in is not told a code.
        if code == "OperationalError" and any(
            word in str(cause) for word in ("FATAL", "no password", "does not exist")
        ):
            reason = "the server refuses this user, password or database"
        raise CalmlflowError(
            f"{name} cannot be {act} ({reason}); expected a database of job records that answers"
        ) from None
