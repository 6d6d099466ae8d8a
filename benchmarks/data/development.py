"""Take a development set out of each task's training set, to choose a recipe without looking at the task's dev set.

    python -m benchmarks.data.development --data TASKS --tasks stsb rte squad --output DEVELOPMENT

DEVELOPMENT/TASK has the training set without a tenth of it, and that tenth as the dev set, for MNLI as both of its
dev sets. Examples that share a text (a sentence, a question, a paragraph) stay on the same side, those of several tasks
too: QNLI made from SQuAD has its questions. So give all tasks that a choice is made by in one command.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
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
        sets = {name: read_training_set(get_task(name), str(Path(options.data) / name)) for name in options.tasks}
        chosen = choose({name: texts for name, (_, texts) in sets.items()}, options.share)
        for name, held_out in chosen.items():
            rows, _ = sets[name]
            if len(held_out) in (0, len(rows)):
                raise UserError(
                    f"--share {options.share:g}: {name} has {len(rows):,} training examples, {len(held_out):,} of "
                    "which would be held out; give another share"
                )
        for name, held_out in chosen.items():
            rows, _ = sets[name]
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
        return rows, [(question.context, question.question) for question in questions]
    examples = cast(Examples, load_examples(task, "train", folder))
    texts = list(zip(*examples.texts, strict=True))
    rows = [
        dict(zip(task.texts, row, strict=True)) | {"label": label}
        for row, label in zip(texts, examples.labels, strict=True)
    ]
    return rows, texts


def choose(texts: Mapping[str, Sequence[Sequence[Hashable]]], share: float) -> dict[str, set[int]]:
    """Return the numbers of the examples to hold out of each task.

    Whole groups are taken in random order, as long as no task goes beyond the share. A group has all examples, of any
    task, that are connected by texts that they share.
    """
    examples = [(task, number) for task, own in texts.items() for number in range(len(own))]
    parents = {example: example for example in examples}

    def find(example: tuple[str, int]) -> tuple[str, int]:
        while parents[example] != example:
            parents[example] = parents[parents[example]]
            example = parents[example]
        return example

    first_with: dict[Hashable, tuple[str, int]] = {}
    for task, number in examples:
        for text in texts[task][number]:
            parents[find((task, number))] = find(first_with.setdefault(text, (task, number)))
    groups: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for example in examples:
        groups.setdefault(find(example), []).append(example)
    order = list(groups.values())
    random.Random(SEED).shuffle(order)
    chosen: dict[str, set[int]] = {task: set() for task in texts}
    for group in order:
        counts = Counter(task for task, _ in group)
        if all(len(chosen[task]) + count <= share * len(texts[task]) for task, count in counts.items()):
            for task, number in group:
                chosen[task].add(number)
    return chosen


if __name__ == "__main__":
    raise SystemExit(main())
