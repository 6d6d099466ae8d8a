"""The models that the clients load, made by the product's own commands from small teachers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ds_distill
from ds_distill.exporters.parity import SAMPLE
from tests.clients import teachers
from tests.clients.teachers import POSITIONS, TEACHERS

FORMATS = ("hf", "onnx", "onnx-int8", "onnx-int4", "openvino-int8", "openvino-int4", "torch-export")
COMMAND_SECONDS = 900


@dataclass(frozen=True)
class Export:
    """One folder that the product makes.

    Args:
        name: The folder's name.
        task: The export's use, by the name of transformers' pipeline, except for "regression".
        pairs: Whether it reads two texts.
        source: The teacher for a masked LM; otherwise the export from which it is made.
        made_by: "distill", "pretrain", "finetune" or "encoder".
        finetuned_on: finetune's --task.
    """

    name: str
    task: str
    source: str
    made_by: str
    pairs: bool = False
    finetuned_on: str = ""


@dataclass(frozen=True)
class Made:
    """What the product has made for an export.

    Args:
        folder: Its folder.
        refused: The product's message by format that it refused, because four bits cost this tiny
            model too much.
    """

    folder: str
    refused: dict[str, str] = field(default_factory=dict)


EXPORTS = {
    export.name: export
    for export in (
        Export("student", "fill-mask", "bert", "distill"),
        Export("roberta", "fill-mask", "roberta", "distill"),
        Export("xlm-roberta", "fill-mask", "xlm-roberta", "distill"),
        Export("bert", "fill-mask", "bert", "pretrain"),
        Export("sentences", "text-classification", "student", "finetune", finetuned_on="sst2"),
        Export("pairs", "text-classification", "student", "finetune", pairs=True, finetuned_on="rte"),
        Export("bert-pairs", "text-classification", "bert", "finetune", pairs=True, finetuned_on="rte"),
        Export("roberta-pairs", "text-classification", "roberta", "finetune", pairs=True, finetuned_on="rte"),
        Export("xlm-roberta-sentences", "text-classification", "xlm-roberta", "finetune", finetuned_on="sst2"),
        Export("regression", "regression", "student", "finetune", pairs=True, finetuned_on="stsb"),
        Export("questions", "question-answering", "student", "finetune", pairs=True, finetuned_on="squad"),
        Export("encoder", "feature-extraction", "student", "encoder"),
        Export("roberta-encoder", "feature-extraction", "roberta", "encoder"),
        Export("bert-encoder", "feature-extraction", "bert", "encoder"),
    )
}


def product_stamp() -> str:
    """Return a digest of the product's code and of the code that makes the exports.

    If it changes, the exports are made anew.
    """
    digest = hashlib.sha256()
    sources = sorted(Path(ds_distill.__file__).parent.rglob("*.py"))
    for file in (*sources, Path(__file__), Path(teachers.__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def make_exports(names: list[str], folder: Path, say: Callable[[str], None]) -> tuple[dict[str, Made], dict[str, str]]:
    """Make the exports `names` and their sources below `folder`, unless an earlier call has done so.

    Returns:
        What was made, by name, and the last line of the error by name of those that the product
        could not make.
    """
    made: dict[str, Made] = {}
    failed: dict[str, str] = {}
    _write_text_and_tasks(folder)

    def make(name: str) -> None:
        export = EXPORTS[name]
        if export.made_by in ("finetune", "encoder") and export.source not in made | failed:
            make(export.source)
        if name in made or name in failed:
            return
        if export.source in failed:
            failed[name] = f"{export.source}, which it is made from, could not be made"
            return
        done = folder / f"{name}.json"
        if not done.is_file():
            say(f"making the export {name}")
            try:
                done.write_text(json.dumps(asdict(_make(export, folder, made))), encoding="utf-8")
            except _CommandFailed as error:
                failed[name] = str(error)
                say(f"  failed: {error}")
                return
        made[name] = Made(**json.loads(done.read_text(encoding="utf-8")))

    for name in names:
        make(name)
    return {name: made[name] for name in names if name in made}, {
        name: failed[name] for name in names if name in failed
    }


class _CommandFailed(Exception):
    """The failure of one of the product's commands: which one, and its last line."""


def _make(export: Export, folder: Path, made: dict[str, Made]) -> Made:
    output = folder / export.name
    if export.made_by == "encoder":
        return _export(output, "--encoder", "--model", made[export.source].folder)
    if export.made_by == "finetune":
        # At this rate, a word that decides the label is learned in minutes.
        # A head that has learned nothing would give every text the same answer.
        options = [
            "--finetune.epochs",
            40 if export.task == "regression" else 12,  # squared errors around the mean give small gradients
            "--finetune.batch_size",
            16,
            "--finetune.learning_rate",
            1e-3,
            "--finetune.precision",
            "fp32",
        ]
        data = folder / "tasks" / export.finetuned_on
        stdout = _ds_distill(
            "finetune",
            "--task",
            export.finetuned_on,
            "--model",
            made[export.source].folder,
            "--data",
            data,
            "--output",
            output,
            *options,
        )
        model = Path(json.loads(stdout.splitlines()[-1])["export"])
        return _export(model, "--model", model)
    teacher = folder / "teachers" / export.source
    if not (teacher / "config.json").is_file():
        TEACHERS[export.source](teacher)
    run = folder / f"{export.name}-run"
    start = ["--teacher", teacher] if export.made_by == "distill" else ["--from", teacher, "--tokenizer", teacher]
    _ds_distill(
        export.made_by,
        *start,
        "--corpus",
        folder / "text.txt",
        "--output",
        run,
        "--data.sequence_length",
        POSITIONS,
        "--data.heldout_fraction",
        0.05,
        "--training.global_batch_size",
        8,
        "--training.micro_batch_size",
        4,
        "--training.max_tokens",
        4000,
        "--training.precision",
        "fp32",
    )
    return _export(output, "--run", run)


def _export(output: Path, *source: object) -> Made:
    """Write all formats of a model into `output`, without those of four bits that the product refuses."""
    refused: dict[str, str] = {}
    while True:
        kept = [form for form in FORMATS if form not in refused and (form != "hf" or "--run" in source)]
        try:
            _ds_distill("export", *source, "--output", output, "--format", *kept)
        except _CommandFailed as error:
            found = re.search(r"--format (\S+-int4): ([^;]* agree with it)", str(error))
            if not found or found[1] in refused:
                raise
            refused[found[1]] = found[2]
        else:
            return Made(str(output), refused)


def _ds_distill(*arguments: object) -> str:
    """Run a command as a user would, with files that everyone may read; return its standard output."""
    words = [str(argument) for argument in arguments]
    root = str(Path(ds_distill.__file__).parents[1])
    variables = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ds_distill", *words],
            cwd=root,
            env=variables,
            capture_output=True,
            text=True,
            umask=0o022,
            timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise _CommandFailed(f"ds-distill {words[0]} took longer than {COMMAND_SECONDS} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _CommandFailed(f"ds-distill {words[0]}: {(lines or ['no word why'])[-1]}")
    return done.stdout


def _write_text_and_tasks(folder: Path) -> None:
    """Write the corpus, and data in each task's own form in which one word decides the label."""
    lines = [line for line in SAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    (folder / "text.txt").write_text("\n\n".join(lines * 8) + "\n", encoding="utf-8")
    sentences = [sentence.strip() for line in lines for sentence in line.split(". ") if len(sentence) > 20]
    for split, count in (("train", 128), ("validation", 32)):
        rows: dict[str, list[dict]] = {"sst2": [], "rte": [], "stsb": []}
        questions = []
        for i in range(count):
            text, other = sentences[i % len(sentences)], sentences[(7 * i + 3) % len(sentences)]
            word, second = ("river", "house")[i % 2], ("river", "house")[(i // 2) % 2]
            label = (
                i % 2 if i % 7 else 1 - i % 2
            )  # some are wrong, so that no answer becomes certain: certainty would hide small errors
            second_label = (i // 2) % 2 if i % 7 else 1 - (i // 2) % 2
            pair = {"sentence1": f"The {word}. {text[:60]}", "sentence2": f"The {second}. {other[:60]}"}
            rows["sst2"].append({"sentence": f"The {word}. {text}", "label": label})
            rows["rte"].append(pair | {"label": second_label})
            rows["stsb"].append(pair | {"label": 1.0 + 3.0 * second_label})
            context = f"The {word}. {text[:60]}"
            answer = {"text": word, "answer_start": context.index(word)}
            questions.append(
                {"context": context, "qas": [{"id": f"{split}{i}", "question": "What is it?", "answers": [answer]}]}
            )
        for task, examples in rows.items():
            (folder / "tasks" / task).mkdir(parents=True, exist_ok=True)
            (folder / "tasks" / task / f"{split}.jsonl").write_text(
                "\n".join(map(json.dumps, examples)) + "\n", encoding="utf-8"
            )
        (folder / "tasks" / "squad").mkdir(parents=True, exist_ok=True)
        squad = {"version": "1.1", "data": [{"title": "sample", "paragraphs": questions}]}
        (folder / "tasks" / "squad" / f"{split}.json").write_text(json.dumps(squad), encoding="utf-8")
