"""`report`: puts studies and benchmark reports on one page."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.config.values import UserPath

PURPOSE = "combine studies and benchmark reports on one page, laid out as the paper's tables"


def add_arguments(parser) -> None:
    parser.add_argument(
        "folders",
        type=UserPath,
        nargs="+",
        help="--output folders of studies, and --report folders of benchmarks.inference.table3 or benchmarks.inference",
    )


def check(options) -> None:
    options.output = options.output or str(Path(options.folders[0]) / "report")


def check_paths(options) -> None:
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.study.report import write_report

    return write_report(options.folders, Path(options.output))
