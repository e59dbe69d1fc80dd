"""What a version says of its way to a stage: tags, and a description that MLflow's pages show."""

import re
from collections.abc import Sequence

from mlflow import MlflowClient

from calmlflow.registry.history import Check, Event

BEGIN, END = "<!-- calmlflow -->", "<!-- /calmlflow -->"
MAX_DESCRIPTION = 5000
"""Characters that a registry's database keeps."""


def write_evidence(client: MlflowClient, model: str, event: Event) -> None:
    """Put a move's tags and description on its version, and a note on the version that was rolled back from."""
    of = f"by {event.who} at {event.at}" + (f": {event.reason}" if event.reason else "")
    kind = "promoted" if event.action == "promotion" else "restored"
    tags = {kind: f"to {event.stage} {of}"}
    if event.checks:
        tags["gate"] = "forced" if event.forced else "passed"
    forced = ", **forced**" if event.forced else ""
    head = f"**{event.stage}**: {kind}{forced} by {_plain(event.who)} at {event.at}"
    head += f", in place of version {event.before}." if event.before is not None else "."
    if event.reason:
        head += f" Reason: {_plain(event.reason)}"
    _write(client, model, event.version, tags, head, event.checks, event.run_id)
    if event.action == "rollback" and event.before is not None:
        _set_tags(client, model, event.before, {"rolled_back": of})


def write_refusal(
    client: MlflowClient, model: str, version: int, stage: str, checks: Sequence[Check], run_id: str
) -> None:
    """Put the checks that a version did not pass on it."""
    failed = sum(not check.passed for check in checks)
    head = f"Refused for **{stage}**: {failed} of {len(checks)} checks failed."
    _write(client, model, version, {"gate": "refused"}, head, checks, run_id)


def checks_table(checks: Sequence[Check]) -> str:
    """Checks as a table in Markdown."""
    rows = [
        f"| {'passed' if check.passed else '**failed**'} | {check.name} | {_plain(check.figure)} "
        f"| {_plain(check.expected)} |"
        for check in checks
    ]
    return "\n".join(["| | check | found | expected |", "|---|---|---|---|", *rows])


def _write(
    client: MlflowClient,
    model: str,
    version: int,
    tags: dict[str, str],
    head: str,
    checks: Sequence[Check],
    run_id: str,
) -> None:
    found = client.get_model_version(model, str(version))
    tags |= {
        f"gate.{check.name}": f"{'passed' if check.passed else 'failed'}: {check.figure} ({check.expected})"
        for check in checks
    }
    if checks:
        # To delete a tag needs more permission than to set it.
        tags |= {old: "not checked" for old in found.tags if old.startswith("gate.") and old not in tags}
    _set_tags(client, model, version, tags, dict(found.tags))
    text = head
    if checks:
        where = f" (run `{run_id}`)" if run_id else ""
        text += f"\n\nThe gate{where}:\n\n{checks_table(checks)}"
    # What people wrote themselves stays.
    own = re.sub(f"{BEGIN}.*{END}", "", found.description or "", flags=re.DOTALL).strip()
    if len(text) + len(own) + 100 > MAX_DESCRIPTION:
        text = f"{head}\n\n{checks_table([check for check in checks if not check.passed])}"
    text = text[: max(0, MAX_DESCRIPTION - len(own) - 100)]
    description = f"{own}\n\n{BEGIN}\n{text}\n\n{END}".strip()
    if description != found.description:
        client.update_model_version(model, str(version), description)


def _set_tags(
    client: MlflowClient, model: str, version: int, tags: dict[str, str], known: dict[str, str] | None = None
) -> None:
    for name, value in tags.items():
        if (known or {}).get(name) != value:
            client.set_model_version_tag(model, str(version), name, value)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
