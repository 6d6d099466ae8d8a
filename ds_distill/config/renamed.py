"""Keys that earlier versions named otherwise.

A recipe or a command line that uses an earlier key is refused with the name of today. A run's record
of its own settings is read under the names of today, so that a run begun earlier can still resume.
"""

from __future__ import annotations

from typing import Any

RENAMED = {
    "training.global_batch": "training.global_batch_size",
    "training.micro_batch": "training.micro_batch_size",
    "training.clip": "training.max_grad_norm",
    "training.warmup": "training.warmup_ratio",
    "training.checkpoint_every": "training.save_every",
    "training.keep_checkpoints": "training.save_total_limit",
    "training.evaluate_every": "training.eval_every",
    "training.heldout_blocks": "training.eval_max_sequences",
    "training.trunk_learning_rate": "training.encoder_learning_rate",
    "data.mask_probability": "data.mlm_probability",
    "data.mask_smoothing": "data.mlm_smoothing",
    "student.layers": "student.init_layers",
    "student.depth": "student.num_layers",
    "student.hidden": "student.hidden_size",
    "losses.kl_on": "losses.kl_tokens",
    "tuning.batch": "finetune.batch_size",
    "tuning.length": "finetune.max_length",
    "tuning.warmup": "finetune.warmup_ratio",
    "tuning.max_examples": "finetune.max_train_samples",
    "tuning.hard": "finetune.hard_label_weight",
    "tuning.soft": "finetune.soft_label_weight",
    "tuning.hidden": "finetune.match",  # [{loss: cosine, layers: last, weight: …}]
    "tuning.hidden_weight": "finetune.match",
    "tuning": "finetune",
    "teacher_too": "include_teacher",
    "second": "task_distillation",
}
MODE_LINES = "lines"  # was "grouped"
RENAMED_VALUES = {("data.mode", "grouped"): MODE_LINES}
RENAMED_COMMANDS = {"plan": "estimate"}


def current_name(key: str) -> str | None:
    """Return today's name of an earlier version's key; None for a key that was not renamed."""
    section, dot, rest = key.partition(".")
    if section == "finetune":  # --finetune.batch, written by someone who knows its old name
        return RENAMED.get(f"tuning.{rest}")
    return RENAMED.get(key) or (f"{RENAMED[section]}.{rest}" if dot and section in RENAMED else None)


def read_identity(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a run recorded of its settings, by dotted key, under the names of today."""
    read = {current_name(key) or key: value for key, value in record.items()}
    if read.get("data.mode") == "grouped":
        read["data.mode"] = MODE_LINES
    if any(key.startswith("losses.") for key in read):
        read.setdefault("losses.match", [])  # earlier versions had no such list
    for key in ("data.heldout_fraction", "data.drop_duplicates"):
        read.pop(key, None)  # the data's fingerprint tells them
    return read
