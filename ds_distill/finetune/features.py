"""The examples of a task as a model reads them.

Training, evaluation and the teacher share this code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from ds_distill.models.families import INPUTS
from ds_distill.models.inputs import encode_rows, pad_right
from ds_distill.tasks.examples import Examples

MEGABATCH = 50  # how many batches are sorted together, as in transformers' LengthGroupedSampler


class Features(Dataset):
    """The features of a set.

    Args:
        inputs: Token lists by name.
        labels: The arguments of the model's forward that hold labels, by name.
        teacher: The teacher's outputs for each row, as of `predict`; or None.
        cut: How many examples, or SQuAD questions, were longer than the part that is read.
        labeled: Whether each row has labels; None where all have. The labels of the others are placeholders.
    """

    def __init__(
        self,
        inputs: dict[str, list[list[int]]],
        labels: dict[str, list],
        teacher: list[np.ndarray] | None = None,
        *,
        cut: int = 0,
        labeled: list[bool] | None = None,
    ):
        self.inputs, self.labels, self.teacher, self.cut, self.labeled = inputs, labels, teacher, cut, labeled

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    def __getitem__(self, row: int) -> dict:
        out = {name: values[row] for name, values in self.inputs.items()} | {
            name: values[row] for name, values in self.labels.items()
        }
        out |= {} if self.labeled is None else {"labeled": self.labeled[row]}
        return out if self.teacher is None else out | {"teacher": self.teacher[row]}

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [len(ids) for ids in self.inputs["input_ids"]]

    @property
    def labeled_rows(self) -> list[int]:
        """The rows that have labels of their own."""
        return [row for row in range(len(self)) if self.labeled is None or self.labeled[row]]

    @property
    def num_augmented(self) -> int:
        """The number of rows without labels of their own, which an augmentation has added."""
        return len(self) - len(self.labeled_rows)

    def count(self, token: int | None) -> int:
        """Return how often a token, given by id, occurs in the inputs that have labels."""
        ids = self.inputs["input_ids"]
        return 0 if token is None else sum(ids[row].count(token) for row in self.labeled_rows)


def is_per_token(label: object) -> bool:
    """Return whether a row's label is one class id for each token, and not a value for each class."""
    return isinstance(label, list) and isinstance(label[0], int)


class ByLength(Sampler):
    """The order of an epoch's rows, a pure function of (seed, epoch).

    The order is random, but batches hold rows of similar length, so that little is padding. From a
    random order, the rows of 50 batches at a time (for a small set, a quarter of it) are sorted by
    length and divided into batches, and the batches are shuffled. Rows that fill no batch come
    last, as drawn. In random order half to two thirds of a batch is padding; here it is a few
    percent.
    """

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = np.array(lengths), batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self):
        random, rows = np.random.default_rng([self.seed, self.epoch]), len(self.lengths)
        order, whole = random.permutation(rows), rows // self.batch * self.batch
        size = self.batch * max(1, min(MEGABATCH, rows // (4 * self.batch)))
        parts = np.split(order[:whole], range(size, whole, size))
        batches = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts]).reshape(
            -1, self.batch
        )
        return iter([*random.permutation(batches).reshape(-1).tolist(), *order[whole:].tolist()])


def encode_features(examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int) -> Features:
    """Encode examples of one or two texts, truncated to `length` tokens.

    The tokenizer decides at which side they are truncated.
    """
    encoded, cut = encode_rows(tokenizer, examples.texts, length)
    return Features(encoded, {"labels": examples.labels}, cut=cut)


@dataclass
class Collator:
    """A collator that turns rows of Features into tensors, with all INPUTS.

    Rows are padded on the right to the longest, labels of tokens with -100. A teacher's outputs
    over tokens are padded with -inf, which means no probability.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        padded = pad_right([{name: row[name] for name in INPUTS} for row in rows], self.tokenizer.pad_token_id)
        batch = {name: torch.from_numpy(values) for name, values in padded.items()}
        for name in ("labels", "start_positions", "end_positions"):
            if name in rows[0]:
                values = [row[name] for row in rows]
                if is_per_token(values[0]):
                    width = batch["input_ids"].shape[1]
                    values = [row + [-100] * (width - len(row)) for row in values]
                batch[name] = torch.tensor(values)
        if "labeled" in rows[0]:
            batch["labeled"] = torch.tensor([row["labeled"] for row in rows])
        if "teacher" in rows[0]:
            width = max(row["teacher"].shape[-1] for row in rows)
            given = [row["teacher"] for row in rows]
            missing = [[(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])] for values in given]
            wide = [np.pad(values, pad, constant_values=-np.inf) for values, pad in zip(given, missing, strict=True)]
            batch["teacher"] = torch.from_numpy(np.stack(wide)).float()
        return batch
