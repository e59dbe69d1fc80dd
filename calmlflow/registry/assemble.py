"""Complete a bundle: add the networks that a training lacks from the champion's."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from calmlflow.errors import InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import TABLE_OF_NETWORK, Bundle
from calmlflow.predictor.manifest import OWN_TABLES, ladder_of, read_files, read_manifest, table_of, write_manifest
from calmlflow.registry.versions import find_version
from calmlflow.settings import BUNDLE_MODEL, NETWORKS


def assemble(models: Path, champion: Path) -> Bundle:
    """Add the networks that a training lacks, from the bundle of the champion.

    A table that is the same for all networks (scaling, seen rows) lies at the top. One that is not lies in the folder
    of each, and none at the top, where somebody could take it for that of all. An InputError where the champion's files
    are not whole or do not belong together; then ``models`` is what it was.
    """
    fresh = {path.relative_to(models).as_posix(): path.read_bytes() for path in models.rglob("*") if path.is_file()}
    others = read_files(champion, read_manifest(champion), whole=True)
    if not ladder_of(others).has_bins_of(LADDER):
        raise InputError(
            f"the champion was trained for {ladder_of(others)} and {LADDER} is in force; expected the same: train all "
            "three networks, with only=all"
        )
    source = {network: fresh if f"{network}/{network}.onnx" in fresh else others for network in NETWORKS}
    files: dict[str, bytes] = {}
    for network, held in source.items():
        files |= {name: content for name, content in held.items() if Path(name).parts[0] == network}
        files |= {name: held[name] for name in held if name == TABLE_OF_NETWORK.get(network)}
    for table in OWN_TABLES:
        contents = {network: held.get(table_of(network, table, held)) for network, held in source.items()}
        same = len(set(contents.values())) == 1
        for network, content in contents.items():
            files.pop(f"{network}/{table}", None)
            if content is not None:
                files[table if same else f"{network}/{table}"] = content

    with tempfile.TemporaryDirectory(dir=models.parent, prefix=".assembled-") as temporary:
        whole = Path(temporary) / models.name
        for name, content in files.items():
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_manifest(whole)
        bundle = Bundle.load(whole, NETWORKS)
        models.rename(Path(temporary) / "before")
        whole.rename(models)
    return bundle


def runs_of_version(version: str, networks: Sequence[str]) -> dict[str, str]:
    """Network -> id of the run that trained it, of a registered version of the bundle, where it is known."""
    found = find_version(version, BUNDLE_MODEL)
    runs = {network: found.tags.get(f"run.{network}") or found.run_id for network in networks}
    return {network: run for network, run in runs.items() if run}
