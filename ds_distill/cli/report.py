"""`report`: puts runs, studies and benchmark reports on one page."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.config.values import UserPath
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned
from ds_distill.utils.errors import UserError

PURPOSE = "put runs, studies and benchmark reports on one page that needs no other file"
EXAMPLES = r"""
ds-distill report runs/student
ds-distill report runs/student runs/other --output runs/page
ds-distill report runs/study runs/table3 runs/pareto
"""
COMMON_OPTIONS = (
    "folders",
    "output",
)


def add_arguments(parser) -> None:
    parser.add_argument(
        "folders",
        type=UserPath,
        nargs="+",
        help="--output folders of distill, pretrain, finetune, study and benchmarks.inference.pareto, and --report "
        "folders of benchmarks.inference.table3 or benchmarks.inference",
    )
    parser.add_argument(
        "--teacher",
        type=UserPath,
        nargs="+",
        default=[],
        help="--output folders of the teacher's own pretraining or fine-tunings, whose metrics are the baseline for "
        "the runs; by default, the metrics that a distillation has measured for its teacher",
    )


def check(options) -> None:
    first = Path(options.folders[0])
    options.output = options.output or str(first / "report")
    for folder in (*options.folders, *options.teacher):
        if Path(folder).resolve() == Path(options.output).resolve():
            raise UserError(
                f"--output {options.output}: the folder of a run or study, whose summary.json the report's would "
                "replace; choose another --output"
            )


def check_paths(options) -> None:
    from ds_distill.reporting.runs import is_run

    for folder in options.teacher:
        if not is_run(Path(folder)):
            raise UserError(f"--teacher {folder}: no finished run; give the --output folder of pretrain or finetune")
    arguments.check_no_run(options.output)


def run(options) -> dict:
    from ds_distill.study.report import write_report

    return write_report(options.folders, Path(options.output), options.teacher)


def closing(options, summary: dict) -> str:
    files = {"page": summary["report"], "text": summary.get("markdown")}
    return format_closing(aligned((name, file) for name, file in files.items() if file))
