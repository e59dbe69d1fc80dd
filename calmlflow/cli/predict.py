"""Run `calmlflow predict`, with as few imports as one answer needs, because the user waits for it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from calmlflow import settings
from calmlflow.console import fail
from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.predictor.control import read_control_file, read_control_object
from calmlflow.predictor.emit import Emitter, open_emitter
from calmlflow.predictor.logs import use_json_logs
from calmlflow.predictor.predictor import Predictor, answer_mosaic

SUMMARY = "Predict one job. Prints memory bin, memory, wallclock and kill time as one line of JSON."

DETAILS = """\
If the registry is out of reach, the last good version answers, "source" is "cache", and a warning gives the reason.

example:
  calmlflow predict j8c601020 --control examples/j8c601020_MemModelFeatures.txt
  calmlflow predict j8c601020 --control examples/j8c601020_MemModelFeatures.txt --explain
"""


class _Parser(argparse.ArgumentParser):
    """Report errors in one line. argparse takes a tenth of the time to import that Typer takes."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see `{self.prog} --help`", status=2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "calmlflow predict",
        description=SUMMARY,
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", metavar="IPPPSSOOT", help="dataset, for example j8c601020, or a mosaic")
    parser.add_argument("--control", type=Path, metavar="FILE", help="control file on disk")
    parser.add_argument("--bucket", help="S3 bucket that holds the control file")
    parser.add_argument("--key", help="its key; default control/IPPPSSOOT/IPPPSSOOT_MemModelFeatures.txt")
    parser.add_argument(
        "--stage", type=_stage, default="Production", help=f"what answers: {settings.CHOICES}; default Production"
    )
    parser.add_argument("--explain", action="store_true", help="print tables that explain the answer")
    parser.add_argument("--json", action="store_true", help="print the explanation, as the answer, as one line of JSON")
    parser.add_argument(
        "--policy-fallback",
        action="store_true",
        help="without a bundle answer bin 1, 20 minutes, kill time 2 hours, and 'fallback': true",
    )
    parser.add_argument(
        "--emit",
        metavar="URI",
        default=settings.emit_uri(),
        help="keep the prediction under s3://bucket/prefix or in a database; default CALMLFLOW_EMIT",
    )
    parser.add_argument(
        "--log-json", action="store_true", help="log the answer and its milliseconds to standard error as JSON"
    )
    return parser


def predict(words: Sequence[str]) -> None:
    """Run the command with these words after its name."""
    parser = _parser()
    given = parser.parse_args(words)
    if given.log_json:
        use_json_logs()
    emitter = _open_emitter(given.emit) if given.emit else None
    job = parse_dataset(given.dataset)
    if job.is_hap:
        found = answer_mosaic(job, emitter)
        if given.explain:
            from calmlflow.predictor.explain import explain

            found = explain(found, job.name)
        _print(found, given)
        return
    if (given.control is None) == (given.bucket is None) or (given.key and not given.bucket):
        parser.error("the control file's place is not clear; expected --control FILE, or --bucket BUCKET [--key KEY]")
    keys = read_control_file(given.control) if given.control else read_control_object(job.name, given.bucket, given.key)
    predictor = Predictor(given.stage, policy_fallback=given.policy_fallback, emit=emitter)
    _print((predictor.explain if given.explain else predictor.predict)(job.name, keys), given)


def _open_emitter(uri: str) -> Emitter:
    if uri.partition("://")[0] not in settings.DATABASE_SCHEMES:
        return open_emitter(uri)
    # Loading the database libraries takes longer than an answer.
    from calmlflow.jobs.predictions import open_store_emitter

    return open_store_emitter(uri)


def _stage(text: str) -> str:
    """Check what names a version in the terms of argparse."""
    try:
        return settings.parse_choice(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _print(found: dict[str, Any], given: argparse.Namespace) -> None:
    text = json.dumps(found)
    if given.explain and not given.json:
        # Loading tables takes longer than an answer.
        from calmlflow.predictor.explain import as_text

        text = as_text(found)
    print(text)
