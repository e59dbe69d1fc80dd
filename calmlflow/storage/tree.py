"""The folder that a training leaves behind."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from calmlflow.errors import CalmlflowError


class Tree(NamedTuple):
    """Where a training writes, and where all of it will be once it has ended well."""

    partial: Path
    final: Path


def _named(output: Path, epoch: int) -> Tree | None:
    """Claim the name of that second, or None where it is taken."""
    name = f"{datetime.fromtimestamp(epoch, UTC).date().isoformat()}-{epoch}"
    tree = Tree(output / f".{name}", output / name)
    if tree.final.exists() or tree.final.is_symlink():
        return None
    try:
        tree.partial.mkdir()
    except FileExistsError:
        return None
    return tree


@contextmanager
def new_tree(output: Path) -> Iterator[Tree]:
    """Make a new folder ``{date}-{epoch}`` in ``output``, there under its name only once the block has ended well.

    Raises
    ------
    CalmlflowError
        ``output`` cannot be written.
    """
    epoch = int(time.time())
    try:
        output.mkdir(parents=True, exist_ok=True)
        while not (tree := _named(output, epoch)):
            # Another training began in the same second.
            epoch += 1
    except OSError as error:
        raise CalmlflowError(f"output {output} cannot be written ({error.strerror}); expected a folder") from None
    try:
        yield tree
        tree.partial.rename(tree.final)
    finally:
        shutil.rmtree(tree.partial, ignore_errors=True)
