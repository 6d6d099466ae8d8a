"""Run one client after another: prepare its environment, run its process and judge its numbers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.clients.catalog import ENVIRONMENTS, Client, get_checks
from tests.clients.compare import PYTORCH, TOLERANCES, Wrong, check_answers
from tests.clients.environments import NotRun, interpreter, make_ready
from tests.clients.exports import Export, Made

SCRIPTS = Path(__file__).parent / "scripts"
NOT_RUN = "not run: "  # how the last line of a script begins if it cannot run here


def client_stamp(client: Client, exports_stamp: str) -> str:
    """Return a digest of everything that a client's results depend on; if it changes, the client is run again."""
    digest = hashlib.sha256(f"{exports_stamp} {client} {ENVIRONMENTS[client.environment]} {TOLERANCES}".encode())
    for file in sorted(SCRIPTS.iterdir()):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def run_client(
    client: Client,
    environments: Path,
    made: dict[str, Made],
    references: dict[str, dict],
    log: Path,
    say: Callable[[str], None],
) -> dict:
    """Run a client on every export and format that it takes and that could be made.

    Args:
        client: A client of the catalog.
        environments: The folder of the environments.
        made: The exports, by name.
        references: The inputs and the expected answers, by the export's name.
        log: The file for the output of the client's process.
        say: A function that shows a line of progress.

    Returns:
        {"client", "versions", "not_run": the reason or None, "checks", "seconds"}. A check is
        {"export", "format", "status": "same", "failed" or "limit", "difference", "error", "notes"}.
    """
    began = time.monotonic()
    row: dict = {"client": client.name, "versions": {}, "not_run": None, "checks": []}
    try:
        environment = ENVIRONMENTS[client.environment]
        say(f"{client.name}: environment {environment.name}")
        ready = make_ready(environment, environments)
        with tempfile.TemporaryDirectory(prefix="ds-distill-clients-") as scratch:
            result, ended = _run(client, ready, made, references, Path(scratch), log)
    except NotRun as error:
        row["not_run"] = str(error)
    else:
        row["versions"] = result.get("versions", {})
        row["checks"] = _judged(client, result.get("checks", []), made, references, ended)
    row["seconds"] = round(time.monotonic() - began)
    return row


def _checks(client: Client, made: dict[str, Made]) -> list[tuple[Export, str]]:
    return [
        (export, form)
        for export, form in get_checks(client)
        if export.name in made and form not in made[export.name].refused
    ]


def _run(
    client: Client, ready: Path, made: dict[str, Made], references: dict[str, dict], scratch: Path, log: Path
) -> tuple[dict, str]:
    """Return the output of the client's process, and how it ended if it did not end well."""
    scratch.chmod(0o755)
    checks = []
    for export, form in _checks(client, made):
        folder = Path(made[export.name].folder)
        if client.own_copy:
            copy = scratch / "folders" / export.name
            folder = copy if copy.exists() else shutil.copytree(folder, copy)
        checks.append(
            {
                "export": export.name,
                "format": form,
                "task": export.task,
                "pairs": export.pairs,
                "folder": str(folder),
                "inputs": references[export.name]["inputs"],
            }
        )
    job, result = scratch / "job.json", scratch / "result.json"
    job.write_text(json.dumps({"checks": checks}), encoding="utf-8")
    if client.in_page:
        from tests.clients.page import run_page

        served = {check["export"]: Path(check["folder"]) for check in checks}
        ended = run_page(SCRIPTS / client.script, ready, job, result, served, log, client.minutes * 60)
    else:
        ended = _run_script(client, ready, job, result, log)
    return (json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}), ended


def _run_script(client: Client, ready: Path, job: Path, result: Path, log: Path) -> str:
    scratch = job.parent
    script = SCRIPTS / client.script
    if ENVIRONMENTS[client.environment].installer == "npm":  # npm packages are found beside the script
        for file in SCRIPTS.glob("*.mjs"):
            shutil.copy(file, ready)
        script = ready / client.script
    # The model hub is out of reach: a client must not look there for what a folder lacks, and fails at once if it does.
    variables = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(scratch / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VIRTUAL_ENV"):
        variables.pop(name, None)
    command = [interpreter(ENVIRONMENTS[client.environment], ready), str(script), str(job), str(result)]
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=client.minutes * 60,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {client.minutes:g} minutes"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if done.returncode and lines and lines[-1].startswith(NOT_RUN):
        raise NotRun(lines[-1].removeprefix(NOT_RUN))
    return f"its process ended with {done.returncode}: {(lines or ['no word why'])[-1]}" if done.returncode else ""


def file_name(client: Client) -> str:
    """Return a client's name as the name of a file."""
    return client.name.lower().replace(" ", "-")


def _judged(
    client: Client, results: list[dict], made: dict[str, Made], references: dict[str, dict], ended: str
) -> list[dict]:
    rows = {(row["export"], row["format"]): row for row in results}
    judged = []
    for export, form in _checks(client, made):
        row = rows.get((export.name, form), {"errors": {"": ended or "no answer"}})
        expected = references[export.name]["answers"]
        judged.append(
            {"export": export.name, "format": form}
            | judge(client, export.name, form, row, expected.get(form, expected[PYTORCH]))
        )
    return judged


def judge(client: Client, export: str, form: str, row: dict, reference: dict[str, dict]) -> dict:
    """Return the status of one check: "same", "limit" or "failed".

    "same" is within the format's tolerance; "limit" is a limit of the client's own.
    """
    notes = sorted({*row.get("notes", []), *(["overlong text: cut after [SEP] was added"] if client.cuts_last else [])})
    errors = row.get("errors", {})
    difference, error = None, None
    if errors:
        name, message = next(iter(errors.items()))
        error = f"{message} (input {name})" if name and len(errors) < len(reference) else message
    elif client.script == "shipped_examples.py":
        difference = 0.0
    else:
        try:
            difference = max(check_answers(row["answers"], reference, client.cuts_last).values())
        except Wrong as wrong:
            error = str(wrong)
        else:
            if difference > TOLERANCES[form]:
                error = f"differs by {difference:.2g} of the largest value"
    if error is None:
        return {"status": "same", "difference": difference, "error": None, "notes": notes}
    limit = next((limit for limit in client.limits if limit.covers(export, form, error)), None)
    status, message = ("limit", limit.why) if limit else ("failed", error)
    return {"status": status, "difference": difference, "error": message, "notes": notes}
