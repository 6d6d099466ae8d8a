"""Fine-tuning one model on one task: runs over seeds and settings, each resumable, on transformers' Trainer."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ds_distill.claim import claimed_alone
from ds_distill.console import progress
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.errors import UserError
from ds_distill.finetune.examples import load_examples, split_files
from ds_distill.finetune.features import Collator, Features, features_of, outputs_of
from ds_distill.finetune.losses import hidden_loss, second_distillation
from ds_distill.finetune.metrics import scores
from ds_distill.finetune.settings import Tuning
from ds_distill.finetune.squad import LENGTH, Question, answers_of, checked, read_squad, spans_of, squad_scores
from ds_distill.finetune.tasks import Task
from ds_distill.models.families import family_of_type
from ds_distill.models.teacher import choose_cpu_dtype, weights_fingerprint


@dataclass
class Sets:
    """A task's data as one tokenizer reads it. dev: by name of the split, features and what they are scored with."""

    train: Features
    dev: dict[str, tuple[Features, object]]
    fingerprint: str
    examples: int


def read_sets(task: Task, tokenizer, data: str | None, settings: Tuning, positions: int) -> Sets:
    """positions: the most tokens a model reads. Raises UserError for what is wrong in the files, with file and line, and where a split is missing."""
    most = settings.max_examples or None
    if task.spans:
        train = _questions(task, "train", data)[:most]
        if not any(question.answers for question in train):
            raise UserError(f"--task {task.name}: no question of the training set has an answer")
        spans = spans_of(train, tokenizer, min(LENGTH, positions))
        features = Features(spans.inputs, {"start_positions": spans.starts, "end_positions": spans.ends})
        dev = {}
        for split in task.validation:
            questions = _questions(task, split, data)
            found = spans_of(questions, tokenizer, min(LENGTH, positions))
            dev[split] = Features(found.inputs, {}), (questions, found)
        texts: list = [[q.id, q.question, q.answers] for q in train]
        count = len(train)
    else:
        train = load_examples(task, "train", data)
        train.texts, train.labels = [column[:most] for column in train.texts], train.labels[:most]
        features = features_of(train, tokenizer, min(settings.length, positions))
        dev = {}
        for split in task.validation:
            examples = load_examples(task, split, data)
            dev[split] = features_of(examples, tokenizer, min(settings.length, positions)), np.array(examples.labels)
        texts, count = [train.texts, train.labels], len(train)
    digest = hashlib.sha256(json.dumps([task.name, features.inputs["input_ids"][:50], len(features), texts], default=list).encode()).hexdigest()
    return Sets(features, dev, digest[:16], count)


def _questions(task: Task, split: str, data: str | None) -> list[Question]:
    if data:
        [file] = split_files(Path(data).expanduser(), split)
        return read_squad(file)
    from datasets import load_dataset

    try:
        rows = load_dataset(task.hub[0], split=split)
    except Exception as error:  # no network: the library answers with whatever breaks first
        reason = f"the hub's {task.hub[0]} cannot be had ({' '.join(str(error).split())[:200]})"
        raise UserError(f"--task {task.name}: {reason}; give --data DIR with train.json and {split}.json") from error
    answers = [tuple(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)) for row in rows]
    questions = [Question(row["id"], row["question"], row["context"], found) for row, found in zip(rows, answers, strict=True)]
    return [checked(question, f"{task.hub[0]}, {question.id}") for question in questions]


def load_for_task(path: str, task: Task, what: str, *, tuned: bool) -> PreTrainedModel:
    """An encoder with the head for `task`: as it is (`tuned`: it must have been fine-tuned on this very task), or a new one on a pretrained trunk."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise UserError(f"--{what} {path}: no Hugging Face folder (config.json and model.safetensors) there")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family_of_type(config.model_type)
    kind, trained_on = (config.architectures or [""])[0], getattr(config, "finetuning_task", None)
    right = "ForQuestionAnswering" if task.spans else "ForSequenceClassification"
    if tuned and not kind.endswith(right):
        raise UserError(f"--{what} {path}: a {kind or 'model without a head'}; the second distillation needs a teacher fine-tuned on {task.name}")
    if trained_on and trained_on != task.name:
        raise UserError(f"--{what} {path}: was fine-tuned on {trained_on}, not on {task.name}; give " +
                        (f"one fine-tuned on {task.name}" if tuned else "the pretrained folder it came from"))  # fmt: skip
    if not task.spans:
        labels = (
            {"num_labels": 1} if task.regression else {"id2label": dict(enumerate(task.labels)), "label2id": {n: i for i, n in enumerate(task.labels)}}
        )
        if tuned and config.num_labels != (1 if task.regression else len(task.labels)):
            raise UserError(f"--{what} {path}: has {config.num_labels} labels, {task.name} has {1 if task.regression else len(task.labels)}")
        for key, value in labels.items():
            setattr(config, key, value)
        config.problem_type = "regression" if task.regression else "single_label_classification"
    config.finetuning_task = task.name
    auto = AutoModelForQuestionAnswering if task.spans else AutoModelForSequenceClassification
    return auto.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Tuner(Trainer):
    """Trainer with a teacher's soft targets, when a batch has them."""

    def __init__(self, *arguments, settings: Tuning, task: Task, teacher: PreTrainedModel | None = None, **more):
        super().__init__(*arguments, **more)
        self.settings, self.task, self.teacher = settings, task, teacher
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        s, targets = self.settings, inputs.pop("teacher", None)
        outputs = model(**inputs, output_hidden_states=s.hidden > 0 and targets is not None)
        loss = outputs.loss
        if targets is not None:
            loss = s.hard * loss + s.soft * second_distillation(outputs, targets, temperature=s.temperature, regression=self.task.regression)
            if s.hidden > 0:
                with torch.no_grad():
                    taught = self.teacher(
                        **{k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "token_type_ids")}, output_hidden_states=True
                    )
                loss = loss + s.hidden * hidden_loss(outputs.hidden_states[-1], taught.hidden_states[-1], inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss


def scored(task: Task, model: PreTrainedModel, sets: Sets, collator: Collator, batch: int, what: str) -> dict[str, float]:
    """The task's figures on its dev sets; of a second dev set with its name before them."""
    found: dict[str, float] = {}
    for number, (split, (features, gold)) in enumerate(sets.dev.items()):
        outputs = outputs_of(model, features, collator, batch, f"{what}, {split}")
        if task.spans:
            questions, spans = gold
            part = squad_scores(questions, answers_of(questions, spans, [o[0] for o in outputs], [o[1] for o in outputs]))
        else:
            part = scores(task.metrics, np.stack(outputs), gold)
        found |= part if number == 0 else {f"{split.removeprefix('validation_')}_{name}": value for name, value in part.items()}
    return found


def teacher_outputs(teacher: PreTrainedModel, sets: Sets, collator: Collator, batch: int, folder: Path) -> list[np.ndarray]:
    """The teacher's outputs for the training set, computed once and kept in `folder` by what it is and what it read."""
    file = folder / f"{weights_fingerprint(teacher)[:16]}-{sets.fingerprint}.safetensors"
    if not file.is_file():
        outputs = outputs_of(teacher, sets.train, collator, batch, "the teacher's outputs")
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(
            {"values": np.concatenate([o.reshape(-1) for o in outputs]).astype(np.float32), "sizes": np.array([o.size for o in outputs])}, partial
        )
        partial.replace(file)
    kept = load_file(file)
    parts = np.split(kept["values"], np.cumsum(kept["sizes"])[:-1])
    return [part.reshape(2, -1) if sets.train.labels.get("start_positions") else part for part in parts]


class _Bar(TrainerCallback):
    """The whole plan's bar, moved on by steps."""

    def __init__(self, bar, base: int):
        self.bar, self.base = bar, base

    def on_step_end(self, args, state, control, **more):
        self.bar.update(self.base + state.global_step - self.bar.n)
        if state.log_history:
            self.bar.set_postfix(loss=f"{state.log_history[-1].get('loss', 0):.3f}")


def finetune(
    task: Task, model: str, output: Path, *, points: list[Tuning], seeds: list[int], teacher: str | None = None, data: str | None = None
) -> dict:
    """All runs of a plan: every point of the grid with every seed, each in a folder of its own and done once.

    Returns the summary: `metric` (the task's first), its median over seeds at the best point, `metrics` (medians), `seeds` (each run's), and the folder
    of the model that stands for it, the one at the median. Source of seeds and median: Sanh et al. 2019, section 3.
    """
    tokenizer = load_tokenizer(Path(model).expanduser())
    if teacher:
        mentor = load_for_task(teacher, task, "teacher", tuned=True)
    torch.manual_seed(0)  # the new head's values are part of the run's identity
    student = load_for_task(model, task, "model", tuned=False)
    sets = read_sets(task, tokenizer, data, points[0], family_of_type(student.config.model_type).positions(student.config))
    if teacher and points[0].hidden > 0 and mentor.config.hidden_size != student.config.hidden_size:
        raise UserError(
            f"tuning.hidden = {points[0].hidden}: teacher and student have widths {mentor.config.hidden_size} and {student.config.hidden_size}"
        )
    device = _device()
    takes = tuple(name for name in tokenizer.model_input_names if name != "token_type_ids" or student.config.model_type == "bert")
    collator = Collator(tokenizer, takes)
    identity = {"task": task.name, "model": weights_fingerprint(student)[:16], "data": sets.fingerprint,
                "teacher": weights_fingerprint(mentor)[:16] if teacher else None}  # fmt: skip
    with claimed_alone(output, identity):
        if teacher:
            mentor = mentor.to(device).eval().requires_grad_(False)
            own = tuple(name for name in tokenizer.model_input_names if name != "token_type_ids" or mentor.config.model_type == "bert")
            sets.train.teacher = teacher_outputs(mentor, sets, Collator(tokenizer, own), 2 * points[0].batch, output / "teacher")
        results = _run_all(task, model, output, points, seeds, sets, collator, mentor if teacher else None)
    gold = [len(gold[0]) if task.spans else len(gold) for _, gold in sets.dev.values()]
    return summary_of(task, results, output, model, teacher) | {"examples": {"train": sets.examples, "dev": gold[0]}}


def _run_all(task, model, output, points, seeds, sets, collator, mentor) -> list[dict]:
    steps = [math.ceil(len(sets.train) / point.batch) * point.epochs for point in points]
    results = []
    with progress(int(sum(steps)) * len(seeds), task.name, "step") as bar:
        for point, length in zip(points, steps, strict=True):
            for seed in seeds:
                folder = output / ",".join([f"{name}={value}" for name, value in _differing(point, points).items()] + [f"seed={seed}"])
                result = folder / "result.json"
                if result.is_file() and json.loads(result.read_text())["tuning"] == asdict(point):
                    results.append(json.loads(result.read_text()))
                    bar.update(int(length))
                    continue
                results.append(_one_run(task, model, folder, point, seed, sets, collator, mentor, bar))
                result.write_text(json.dumps(results[-1], indent=2) + "\n")
    return results


def _differing(point: Tuning, points: list[Tuning]) -> dict:
    mine = asdict(point)
    return {name: value for name, value in mine.items() if len({asdict(other)[name] for other in points}) > 1}


def _one_run(task: Task, model: str, folder: Path, point: Tuning, seed: int, sets: Sets, collator: Collator, mentor, bar) -> dict:
    torch.manual_seed(seed)
    network = load_for_task(model, task, "model", tuned=False)
    device = _device()
    bf16 = point.precision == "bf16" or point.precision == "auto" and (device.type == "cuda" or choose_cpu_dtype() == torch.bfloat16)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"), per_device_train_batch_size=point.batch, num_train_epochs=point.epochs,
        learning_rate=point.learning_rate,
        lr_scheduler_type="linear", warmup_steps=point.warmup, weight_decay=point.weight_decay, seed=seed, bf16=bf16, use_cpu=device.type == "cpu",
        save_strategy="steps", save_steps=200, save_total_limit=1, logging_steps=20, eval_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, train_sampling_strategy="random",
    )  # fmt: skip
    trainer = Tuner(model=network, args=arguments, train_dataset=sets.train, data_collator=collator, settings=point, task=task, teacher=mentor,
                    callbacks=[_Bar(bar, bar.n)])  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints to standard output, which belongs to results
    last = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    trainer.train(resume_from_checkpoint=str(last[-1]) if last else None)
    metrics = scored(task, network, sets, collator, 2 * point.batch, f"seed {seed}")
    network.save_pretrained(folder / "model")
    collator.tokenizer.save_pretrained(folder / "model")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    return {"seed": seed, "tuning": asdict(point), "metrics": metrics, "losses": losses, "folder": str(folder / "model")}


def summary_of(task: Task, results: list[dict], output: Path, model: str, teacher: str | None) -> dict:
    """The best point of the grid by the median of the task's first metric."""
    metric = task.metrics[0]
    by_point: dict[str, list[dict]] = {}
    for result in results:
        by_point.setdefault(json.dumps(result["tuning"], sort_keys=True), []).append(result)
    best = max(by_point.values(), key=lambda runs: statistics.median(run["metrics"][metric] for run in runs))
    values = [run["metrics"][metric] for run in best]
    middle = min(best, key=lambda run: abs(run["metrics"][metric] - statistics.median(values)))
    dev = {name: statistics.median(run["metrics"][name] for run in best) for name in best[0]["metrics"]}
    points = [{"tuning": runs[0]["tuning"], metric: statistics.median(run["metrics"][metric] for run in runs)} for runs in by_point.values()]
    return {"task": task.name, "metric": metric, metric: dev[metric], "metrics": dev,
            "seeds": [{"seed": run["seed"], **run["metrics"]} for run in best],
            "tuning": best[0]["tuning"], "grid": points if len(points) > 1 else [], "model": model, "teacher": teacher, "export": middle["folder"],
            "output": str(output)}  # fmt: skip
