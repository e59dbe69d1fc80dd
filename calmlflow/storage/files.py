"""Write a file beside its place, then rename: nobody ever sees half of it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from calmlflow.errors import CalmlflowError


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of ``path`` once the block has ended well; the folder is made if need be.

    Raises
    ------
    CalmlflowError
        It cannot be written there.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        # Temporary files are private; this one is for others too, as far as the user's mask allows.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise CalmlflowError(
            f"{path} cannot be written ({error.strerror}); expected a file in a folder of yours"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
