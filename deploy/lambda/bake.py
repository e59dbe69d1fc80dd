"""Bake the content of the Lambda image into build/image: the version in a stage, and the code that answers with it.

An earlier image stays until the new one is whole.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated

import typer

import calmlflow
from calmlflow import settings
from calmlflow.console import say, script
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.registry_client import DIGEST_TAG, fetch, resolve_stage
from calmlflow.settings import hide_password
from calmlflow.storage.files import locked

HERE = Path(__file__).parent
PACKAGE = Path(calmlflow.__file__).parent
PATIENCE_S = 120.0
HANDLER = "calmlflow.predictor.aws_lambda"
NEEDED = ("boto3", "numpy", "onnxruntime")
"""Packages of the image, at the versions of pyproject.toml."""


def main(
    stage: Annotated[str, typer.Option(help=f"The version that is baked: {settings.CHOICES}.")] = "Production",
    output: Annotated[Path, typer.Option(help="Folder of the baked image.")] = HERE / "build",
) -> None:
    """Bake a version of the registry (MLFLOW_TRACKING_URI)."""
    stage = settings.parse_choice(stage)
    try:
        with locked(output / ".lock"):
            bake(stage, output)
    except OSError as error:
        raise CalmlflowError(
            f"{error.filename or output} cannot be written ({error.strerror}); expected a folder of yours, with room"
        ) from error


def bake(stage: str, output: Path) -> None:
    """Write ``output/image`` under the lock."""
    for left_behind in output.glob(".new-*"):
        if (left_behind / "old").exists() and not (output / "image").exists():
            # Killed between the two renames below.
            (left_behind / "old").rename(output / "image")
        shutil.rmtree(left_behind)
    registry_uri = settings.registry_uri()
    staged = resolve_stage(stage, registry_uri)
    if not staged.sha256:
        raise InputError(
            f"version {staged.version} of {settings.BUNDLE_MODEL} has no tag {DIGEST_TAG} in the registry; expected "
            "the digest of its files: register it anew"
        )
    pins = requirements()
    with tempfile.TemporaryDirectory(dir=output, prefix=".new-") as temporary:
        new, old = Path(temporary) / "image", Path(temporary) / "old"
        # Not from a cache; checked against the SHA-256 in the bundle, and this against the registry's digest.
        for name, content in fetch(staged, registry_uri, PATIENCE_S).items():
            put(new / "bundle" / name, content)
        Bundle.load(new / "bundle", settings.NETWORKS)
        put(new / "bundle" / "version.json", json.dumps({"version": staged.version, "stage": stage}).encode())
        for path in sources():
            put(new / "calmlflow" / path.relative_to(PACKAGE), path.read_bytes())
        put(new / "requirements.txt", "\n".join([*pins, ""]).encode())
        for path in (new, *new.rglob("*")):
            # Lambda runs the image as a user of its own.
            path.chmod(0o755 if path.is_dir() else 0o644)
        if (output / "image").exists():
            (output / "image").rename(old)
        new.rename(output / "image")
    image = output / "image"
    say(f"version {staged.version} of {settings.BUNDLE_MODEL} ({stage}) on {hide_password(registry_uri)}")
    say(f"{image}: bundle {megabytes(image / 'bundle')}, code {megabytes(image / 'calmlflow')}")
    say(f"packages that the Dockerfile adds: {', '.join(pins)}")


def put(path: Path, content: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def sources() -> list[Path]:
    """The files of calmlflow that the handler loads, as a process reports that loads nothing else."""
    listed = "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'calmlflow'), sep='\\n')"
    code = f"import sys, {HANDLER}; {listed}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [Path(line) for line in sorted(done.stdout.splitlines())]


def requirements() -> list[str]:
    """Pins of the packages that the handler needs."""
    pins = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    return [pin for pin in pins if pin.partition("==")[0] in NEEDED]


def megabytes(folder: Path) -> str:
    """Size of all files in a folder as text."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.2f} MB"


if __name__ == "__main__":
    script(main)
