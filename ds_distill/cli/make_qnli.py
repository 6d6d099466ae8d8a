"""`make-qnli`: makes the task QNLI from SQuAD's questions."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.config.values import UserPath
from ds_distill.reporting.closing import format_closing, sibling
from ds_distill.reporting.tables import aligned
from ds_distill.run_folder import RunFolder
from ds_distill.tasks.examples import split_files
from ds_distill.utils.console import log, spinner
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.files import json_text, write_atomically

PURPOSE = "make QNLI (does a sentence hold the answer to a question?) from the questions of SQuAD"
EXAMPLES = r"""
ds-distill make-qnli --squad tasks/squad --output tasks/qnli
ds-distill make-qnli --squad tasks/squad_v2 --output tasks/qnli_v2 --json
ds-distill make-qnli --output tasks/qnli
"""
COMMON_OPTIONS = (
    "squad",
    "output",
)
SPLITS = ("train", "validation")


def add_arguments(parser) -> None:
    parser.add_argument(
        "--squad",
        type=UserPath | None,
        default=None,
        help="folder with train.* and validation.* or dev.*, as for finetune --task squad or squad_v2; loaded from the "
        "Hub when not given",
    )


def check(options) -> None:
    arguments.require_output(options)
    if options.squad and expand_user(options.squad).resolve() == Path(options.output).resolve():
        raise UserError(f"--output {options.output}: the folder of --squad; choose another folder for the new files")


def check_paths(options) -> None:
    if options.squad:
        for split in SPLITS:
            split_files(expand_user(options.squad), split, "--squad")
    arguments.check_no_run(options.output)


def run(options) -> dict:
    from ds_distill.tasks.catalog import get_task
    from ds_distill.tasks.qnli import HOLDS, LACKS, count_shared_paragraphs, make_pairs
    from ds_distill.tasks.squad import load_questions

    output, summary = Path(options.output), {}
    task = get_task("squad_v2" if options.squad else "squad")  # which files may be of either version
    questions = {split: load_questions(task, split, options.squad) for split in SPLITS}
    if shared := count_shared_paragraphs(questions["train"], questions["validation"]):
        log(f"{shared:,} paragraphs are both in train and in validation, whose scores will be too high")
    files = {}
    for split in SPLITS:
        with spinner(f"pairing the questions of {split} with sentences"):
            pairs, left_out = make_pairs(questions[split])
        if not pairs:
            raise UserError(
                f"--squad {options.squad}: no question of {split} has an answer; give questions with answers"
            )
        counts = {label: sum(pair.label == label for pair in pairs) for label in (HOLDS, LACKS)}
        if not counts[LACKS]:
            raise UserError(
                f"--squad {options.squad}: each sentence in {split} holds the answer to its question; give questions "
                "on paragraphs of several sentences"
            )
        files[output / f"{split}.jsonl"] = "".join(f"{json_text(pair._asdict())}\n" for pair in pairs)
        left_out = left_out + questions[split].left_out
        summary[split] = {"questions": len(questions[split]), "examples": len(pairs), **counts, "left_out": left_out}
    _check_unused(output, files)
    output.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_atomically(file, text)
    return {"output": options.output, **summary}


def _check_unused(output: Path, files: dict[Path, str]) -> None:
    """Raise UserError where a folder has a run, or files of the splits that are not those that would be written."""
    remedy = "choose another folder, or remove it"
    if RunFolder(output).identity.is_file():
        raise UserError(f"--output {output}: holds a run; choose another folder")
    for found in sorted(file for name in ("train", "validation", "dev") for file in output.glob(f"{name}.*")):
        if found.suffix == ".partial":
            continue  # of a start that was killed
        if found not in files:
            raise UserError(
                f"--output {output}: has {found.name}, beside which no other files of QNLI may be; {remedy}"
            )
        if found.read_bytes() != files[found].encode():
            raise UserError(f"--output {output}: has another {found.name}, which would be lost; {remedy}")


def closing(options, summary: dict) -> str:
    keys = ("questions", "examples", "entailment", "not_entailment")
    rows = [("", *(key.replace("_", " ") for key in keys))]
    rows += [(split, *(f"{summary[split][key]:,}" for key in keys)) for split in SPLITS]
    command = ["finetune", "--task", "qnli", "--data", options.output, "--model", "MODEL"]
    return format_closing(
        aligned(rows),
        aligned([("files", options.output)]),
        commands=[("fine-tune a model on it", [*command, "--output", sibling(options.output, "run")])],
    )
