"""A training to S3 and back."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from calmlflow.console import byte_progress
from calmlflow.storage.archive import pack, unpack
from calmlflow.storage.shipping import fetch, ship
from calmlflow.storage.shipping_parts import parse_uri


def ship_training(tree: str, output: str, destination: str) -> list[str]:
    """Pack a training; with a destination, send the archives to ``{destination}/{date-epoch}/``. A line for each."""
    folder = Path(tree).resolve()
    if destination != "none":
        # Before the work of packing.
        parse_uri(destination)
    files = pack(folder, Path(output) / folder.name)
    return [str(file) for file in files] if destination == "none" else send_training(folder, files, destination)


def send_training(tree: Path, archives: Sequence[Path], destination: str) -> list[str]:
    """Send the files of a training, and archives of it, to ``{destination}/{date-epoch}/``; one line for each."""
    files = [*archives, *sorted(path for path in tree.rglob("*") if path.is_file())]
    with byte_progress("sending") as on_progress:
        sent = ship(files, f"{destination.rstrip('/')}/{tree.name}", on_progress, tree)
    return [f"{item.uri} sha256 {item.sha256} ({item.sent_bytes:,} of {item.size_bytes:,} bytes sent)" for item in sent]


def fetch_training(source: str, output: str) -> str:
    """Fetch an archive of a training and unpack it; the path of its folder."""
    with tempfile.TemporaryDirectory() as temporary, byte_progress("fetching") as on_progress:
        return str(unpack(fetch(source, Path(temporary), on_progress), Path(output)))
