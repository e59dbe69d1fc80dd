"""The folder that a training leaves behind."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from calmlflow.hst.errors import CalmlflowError


class Tree(NamedTuple):
    """Where a training writes, and where all of it will be once it has ended well."""

    partial: Path
    final: Path


@contextmanager
def new_tree(output: Path) -> Iterator[Tree]:
    """Make a new folder ``{date}-{epoch}`` in ``output``, there under its name only once the block has ended well.

    Raises
    ------
    CalmlflowError
        ``output`` cannot be written.
    """
    epoch = int(time.time())
    while True:
        name = f"{datetime.fromtimestamp(epoch, UTC).date().isoformat()}-{epoch}"
        tree = Tree(output / f".{name}", output / name)
        try:
            if not tree.final.exists():
                tree.partial.mkdir(parents=True)
                break
        except FileExistsError:
            pass
        except OSError as error:
            raise CalmlflowError(f"output {output} cannot be written ({error.strerror}); expected a folder") from None
        # Another training began in the same second.
        epoch += 1
    try:
        yield tree
        tree.partial.rename(tree.final)
    finally:
        shutil.rmtree(tree.partial, ignore_errors=True)
