"""Take a development set out of each task's training set, to choose a recipe without looking at the task's dev set.

    python -m benchmarks.data.development --data TASKS --tasks stsb rte squad --output DEVELOPMENT

DEVELOPMENT/TASK has the training set without a tenth of it, and that tenth as the dev set, for MNLI as both of its
dev sets. Examples that share a text (a sentence, a question, a paragraph) stay on the same side.
"""

import argparse
import json
import random
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.harness.cli import amount, user_errors
from ds_distill.tasks.catalog import Task, get_task
from ds_distill.tasks.examples import Examples, load_examples
from ds_distill.tasks.squad import Questions, load_questions
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_atomically

SEED = 0
Row = dict[str, Any]  # an example in the hub's columns


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.development",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder with a folder of files per task")
    parser.add_argument("--tasks", required=True, nargs="+", help="names of tasks, as for finetune")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--share", type=amount, default=0.1, help="share of the training set (default 0.1)")
    options = parser.parse_args()
    with user_errors(parser.prog):
        for name in options.tasks:
            rows, texts = read_training_set(get_task(name), str(Path(options.data) / name))
            held_out = choose(texts, options.share)
            if len(held_out) in (0, len(rows)):
                raise UserError(
                    f"--share {options.share:g}: {name} has {len(rows):,} training examples, {len(held_out):,} of "
                    "which would be held out; give another share"
                )
            folder = options.output / name
            folder.mkdir(parents=True, exist_ok=True)
            for split, there in (("train", False), *((split, True) for split in get_task(name).validation)):
                lines = [json.dumps(row) for number, row in enumerate(rows) if (number in held_out) == there]
                write_atomically(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
            log(f"{folder}: {len(rows) - len(held_out):,} training examples, {len(held_out):,} held out")
    return 0


def read_training_set(task: Task, folder: str) -> tuple[list[Row], list[Sequence[Hashable]]]:
    """Return (a task's training examples in the hub's columns, the texts of each that no other side may have)."""
    if task.spans:
        questions = cast(Questions, load_questions(task, "train", folder))
        rows = [
            {
                "id": question.id,
                "question": question.question,
                "context": question.context,
                "answers": {"text": [a[0] for a in question.answers], "answer_start": [a[1] for a in question.answers]},
            }
            for question in questions
        ]
        return rows, [(question.context,) for question in questions]
    examples = cast(Examples, load_examples(task, "train", folder))
    texts = list(zip(*examples.texts, strict=True))
    rows = [
        dict(zip(task.texts, row, strict=True)) | {"label": label}
        for row, label in zip(texts, examples.labels, strict=True)
    ]
    return rows, texts


def choose(texts: Sequence[Sequence[Hashable]], share: float) -> set[int]:
    """Return the numbers of the examples to hold out: whole groups in random order, until the share is reached.

    A group has all examples that are connected by texts that they share.
    """
    parents = list(range(len(texts)))

    def find(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first_with: dict[Hashable, int] = {}
    for number, own in enumerate(texts):
        for text in own:
            parents[find(number)] = find(first_with.setdefault(text, number))
    groups: dict[int, list[int]] = {}
    for number in range(len(texts)):
        groups.setdefault(find(number), []).append(number)
    order = list(groups.values())
    random.Random(SEED).shuffle(order)
    chosen: set[int] = set()
    for group in order:
        if len(chosen) + len(group) <= share * len(texts):
            chosen |= set(group)
    return chosen


if __name__ == "__main__":
    raise SystemExit(main())
