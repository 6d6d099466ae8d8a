"""Steps whose loss or gradient is not finite: which loss it is, which sequences caused it, and when to give up."""

import math
from pathlib import Path

from torch import Tensor

from ds_distill.data.loader import BatchLoader
from ds_distill.distributed.process_group import all_gather_object
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError

LOSSES = ("kl", "mlm", "cosine")


class NonFiniteGuard:
    """Counts consecutive steps that taught nothing.

    Attributes:
        order: The loader, which knows the sequences of a step.
        at_most: How many such steps in a row are tolerated.
        folder: The folder of the checkpoints, for the message.
        scaled: Whether fp16's dynamic loss scale is in use.
    """

    def __init__(self, order: BatchLoader, at_most: int, folder: Path, scaled: bool):
        self.order, self.at_most, self.folder, self.in_a_row = order, at_most, folder, 0
        self.scaled = scaled  # fp16's dynamic loss scale is found by skipping a step now and then

    def look(self, step: int, total: float, skipped: bool, parts: list[Tensor]) -> None:
        """Collective: check a step once every rank knows its total, and report what is wrong with a bad one.

        Args:
            step: The number of the step, from 0.
            total: The step's total loss.
            skipped: Whether the step was skipped.
            parts: This rank's summed losses [kl, mlm, cosine] of each micro-batch.

        Raises:
            UserError: `at_most` steps in a row were bad.
        """
        if math.isfinite(total) and not skipped:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        what = "its gradient is not finite" if math.isfinite(total) else self._where(step, parts)
        if not (self.scaled and math.isfinite(total)):
            log(
                f"\nstep {step + 1}: {what}: {'skipped' if skipped else 'the loss'}, "
                f"{self.in_a_row} in a row of at most {self.at_most}"
            )
        if self.in_a_row >= self.at_most:
            remedy = "Lower training.learning_rate, use bf16 instead of fp16, or look at those sequences"
            if "kl" in what and "mlm" not in what:
                remedy = (
                    "The masked-LM loss, which is the student's alone, is finite: the teacher's outputs are not. "
                    "Give another teacher"
                )
            raise UserError(
                f"step {step + 1}: {self.in_a_row} steps in a row were not finite (training.max_skipped), the last: "
                f"{what}. {remedy}. The checkpoints in {self.folder} are from before; without the newest, the same "
                "command goes further back"
            )

    def _where(self, step: int, parts: list[Tensor]) -> str:
        mine = []
        entries = self.order.get_indices(step).reshape(
            self.order.accumulation, self.order.world_size, self.order.micro_batch_size
        )
        for micro, losses in enumerate(parts):
            bad = [
                f"{name} {value}"
                for name, value in zip(LOSSES, losses.tolist(), strict=True)
                if not math.isfinite(value)
            ]
            if bad:
                sequences = entries[micro, self.order.rank] % len(self.order.store)
                mine.append(
                    (
                        ", ".join(bad),
                        f"rank {self.order.rank}, micro-batch {micro + 1} of {len(parts)}",
                        ", ".join(map(str, sequences[:8])) + (" …" if len(sequences) > 8 else ""),
                    )
                )
        found = [row for rows in all_gather_object(mine) for row in rows]
        if not found:
            return "the sum of the losses is not finite"
        losses, place, sequences = found[0]
        more = f", and {len(found) - 1} more micro-batches" if len(found) > 1 else ""
        return f"loss {losses} ({place}, sequences {sequences}{more})"
