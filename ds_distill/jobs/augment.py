"""The job that writes augmented copies of a task's training examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

from ds_distill.augment import CLOZE, FILE
from ds_distill.augment.copies import copy_examples
from ds_distill.augment.questions import (
    FEWEST_WORDS,
    MOST_WORDS,
    SENTENCES,
    copy_questions,
    make_cloze_questions,
)
from ds_distill.augment.words import WordProposer
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.readers import documents_in_turn
from ds_distill.data.sources import split_inputs
from ds_distill.finetune.data import load_data
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.run_folder import locked_run_folder_alone, read_finished
from ds_distill.run_record import write_record
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.examples import Examples
from ds_distill.tasks.squad import Questions
from ds_distill.training.device import default_device
from ds_distill.utils.console import log, log_header, progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_atomically
from ds_distill.utils.resources import explain_disk_full, explain_out_of_memory

EXAMPLES = 256  # that are written together; what is written is not made again


def augment(
    task: Task,
    model: str,
    output: Path,
    *,
    data: str | None,
    copies: int,
    seed: int = 0,
    corpus: list[str] | None = None,
    cloze: int = 0,
) -> dict:
    """Write output/augmented.jsonl, which has a row for each augmented copy, and return the summary.

    After an interruption the same call continues.

    Args:
        task: The task.
        model: The folder or name of a masked-LM model that proposes words.
        output: The folder to write.
        data: The folder of the task's files; None for the Hub.
        copies: The number of copies of each training example.
        seed: The seed.
        corpus: Texts of which cloze questions are made, for tasks that ask about paragraphs.
        cloze: The number of cloze questions.

    Raises:
        UserError: The model has no masked-LM head, or the data has a mistake.
    """
    folder, task_data = find_model_folder(model, "--model"), load_data(task, data)
    network = load_masked_lm(folder)
    identity = {
        "task": task.name,
        "data": task_data.fingerprint,
        "model": weights_fingerprint(network)[:16],
        "copies": copies,
        "seed": seed,
        "cloze": cloze,
        "corpus": content_fingerprint(split_inputs(corpus or []))[:16] if cloze else None,
    }
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := read_finished(output, output / FILE, file=output / FILE):
            return finished
        device = default_device()
        proposer = WordProposer(network.to(device), folder.tokenizer)  # type: ignore[arg-type]  # wrong in transformers
        count = len(task_data.train)
        log_header(
            {
                "augment": f"{task.name}, {count:,} training examples × {copies} copies"
                + (f", and {cloze:,} cloze questions" if cloze else ""),
                "words": f"proposed by {folder.name}",
                "output": str(output),
            }
        )
        with explain_disk_full(output), explain_out_of_memory("--model: give a smaller one"):
            parts = _write_parts(output, task_data.train, task, proposer, copies, seed) if copies else []
            if cloze:
                parts.append(_write_cloze(output, corpus or [], cloze, seed))
            summary = _join(output, parts, copies, cloze) | {
                "task": task.name,
                "examples": count,
                "copies": copies,
                "seed": seed,
            }
        made = sum(rows for how, rows in summary["how"].items() if how != CLOZE)
        if made < count * copies:
            log(f"{count * copies - made:,} of {count * copies:,} copies are equal to their sources, and are left out")
        if cloze and summary["how"].get(CLOZE, 0) < cloze:
            log(_few_questions(cloze, summary["how"].get(CLOZE, 0)))
        write_record(output)
    return summary | {"output": str(output), "file": str(output / FILE)}


def _write_parts(
    output: Path, train: Examples | Questions, task: Task, proposer: WordProposer, copies: int, seed: int
) -> list[Path]:
    """Write the copies of the training set, EXAMPLES of its examples in a file, and return the files."""
    make = _questions_maker(cast(Questions, train)) if task.spans else partial(_copies_of, task, cast(Examples, train))
    parts = []
    with progress(len(train), task.name, "example") as bar:
        for first in range(0, len(train), EXAMPLES):
            last = min(first + EXAMPLES, len(train))
            parts.append(_write(output, f"{first:09d}", make(slice(first, last), proposer, copies, seed)))
            bar.update(last - first)
    return parts


def _copies_of(task: Task, train: Examples, part: slice, proposer: WordProposer, copies: int, seed: int):
    return copy_examples(task, [column[part] for column in train.texts], part.start, proposer, copies, seed)


def _questions_maker(train: Questions):
    contexts = list(dict.fromkeys(question.context for question in train))
    places = {context: number for number, context in enumerate(contexts)}

    def make(part: slice, proposer: WordProposer, copies: int, seed: int) -> Iterator[dict]:
        return copy_questions(train[part], contexts, places, part.start, proposer, copies, seed)

    return make


def _write_cloze(output: Path, corpus: list[str], cloze: int, seed: int) -> Path:
    """Write `cloze` questions made of a corpus, or as many as it yields, into a file, and return the file."""
    with progress(cloze, "cloze questions", "question") as bar:

        def counted() -> Iterator[dict]:
            texts = (text for _, text in documents_in_turn(corpus))
            for row in islice(make_cloze_questions(texts, seed), cloze):
                bar.update(1)
                yield row

        return _write(output, CLOZE, counted())


def _write(output: Path, name: str, rows: Iterable[dict]) -> Path:
    """Write rows as JSON lines into a file of their own, unless it is there, and return it."""
    file = output / "parts" / f"{name}.jsonl"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def _few_questions(cloze: int, found: int) -> str:
    return (
        f"--cloze {cloze}: the corpus yields {found:,} questions, made of lines of {FEWEST_WORDS} to {MOST_WORDS} "
        f"words with {SENTENCES} sentences or more"
    )


def _join(output: Path, parts: list[Path], copies: int, cloze: int) -> dict:
    """Join the parts into one file, remove them, and return how many rows there are, by how they were made."""
    how: Counter[str] = Counter()
    partial_file = output / f"{FILE}.partial"
    with partial_file.open("w", encoding="utf-8") as whole:
        for part in parts:
            # A stream ends lines at line feeds alone; splitlines would cut a text at U+2028, which JSON may hold.
            with part.open(encoding="utf-8") as stream:
                for line in stream:
                    how[json.loads(line)["how"]] += 1
                    whole.write(line)
    if not how:
        problem = "no copy differs from its example: no word of the texts can be replaced by the model of --model"
        raise UserError(f"{output}: {problem if copies else _few_questions(cloze, 0)}; give others")
    partial_file.replace(output / FILE)
    for part in parts:
        part.unlink()
    (output / "parts").rmdir()
    return {"rows": how.total(), "how": dict(sorted(how.items()))}
