"""`env`: shows versions, devices, and which fused kernels run here."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned, table
from ds_distill.utils.console import is_first

PURPOSE = "show package versions, devices, and which fused kernels run on this machine"
EXAMPLES = r"""
ds-distill env
ds-distill env --json
ds-distill env --output runs/env
"""
COMMON_OPTIONS = ("output",)


def add_arguments(parser) -> None:
    """Add nothing, because the command has no options of its own."""


def check(options) -> None:
    """Check nothing, because there is nothing to check."""


def check_paths(options) -> None:
    if options.output:
        arguments.check_no_run(options.output)


def run(options) -> dict:
    from ds_distill.environment import describe

    described = describe()
    if is_first():
        versions = [{"package": package, "version": version} for package, version in described["versions"].items()]
        print(table(versions, {"package": "package", "version": "version"}))
        devices = [
            {"what": key.replace("_", " ").replace("gib", "GiB"), "value": _join_list(value)}
            for key, value in described["devices"].items()
        ]
        print("\n" + table(devices, {"what": "device", "value": ""}))
        rows = [
            {"kernel": row["kernel"], "active": "yes" if row["active"] else "no", "why": row["why"]}
            for row in described["kernels"]
        ]
        print("\n" + table(rows, {"kernel": "fused kernel", "active": "active", "why": "reason"}) + "\n")
    return described


def _join_list(value: object) -> object:
    return ", ".join(value) or None if isinstance(value, list) else value


def closing(options, summary: dict) -> str:
    return format_closing(aligned([("files", str(Path(options.output) / "summary.json"))]) if options.output else "")
