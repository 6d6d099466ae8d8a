"""Steps whose loss or gradient is not finite: which loss it is, which sequences caused it, and when to give up."""

import math
from pathlib import Path

from ds_distill.data.loader import BatchLoader
from ds_distill.distributed.process_group import all_gather_object
from ds_distill.training.state import StepResult
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


class NonFiniteGuard:
    """Counts consecutive steps that taught nothing.

    Attributes:
        loader: The loader, which knows the sequences of a step.
        max_consecutive: How many such steps in a row are tolerated.
        folder: The folder of the checkpoints, for the message.
        scaled: Whether fp16's dynamic loss scale is in use.
    """

    def __init__(self, loader: BatchLoader, max_consecutive: int, folder: Path, scaled: bool):
        self.loader, self.max_consecutive, self.folder, self.consecutive = loader, max_consecutive, folder, 0
        self.scaled = scaled  # fp16's dynamic loss scale is found by skipping a step now and then

    def check(self, step: int, result: StepResult) -> None:
        """Collective: check a step once every rank knows its total, and report what is wrong with a bad one.

        Args:
            step: The number of the step, from 0.
            result: Its outcome.

        Raises:
            UserError: `max_consecutive` steps in a row were bad.
        """
        if math.isfinite(result.loss) and not result.skipped:
            self.consecutive = 0
            return
        self.consecutive += 1
        what = "its gradient is not finite" if math.isfinite(result.loss) else self._where(step, result)
        if not (self.scaled and math.isfinite(result.loss)):
            log(
                f"\nstep {step + 1}: {what}: {'skipped' if result.skipped else 'the loss'}, "
                f"{self.consecutive} in a row of at most {self.max_consecutive}"
            )
        if self.consecutive >= self.max_consecutive:
            remedy = "Lower training.learning_rate, use bf16 instead of fp16, or look at those sequences"
            if "kl" in what and "mlm" not in what:
                remedy = (
                    "The masked-LM loss, which is the student's alone, is finite: the teacher's outputs are not. "
                    "Give another teacher"
                )
            raise UserError(
                f"step {step + 1}: {self.consecutive} steps in a row were not finite (training.max_skipped), the last: "
                f"{what}. {remedy}. The checkpoints in {self.folder} were written before these steps; to resume from "
                "an earlier one, remove the newest and repeat the command"
            )

    def _where(self, step: int, result: StepResult) -> str:
        bad_batches = []
        entries = self.loader.rank_entries(step)
        for micro, sums in enumerate(result.sums):
            bad = [
                f"{name} {value}"
                for name, value in zip(result.losses, sums.tolist(), strict=True)
                if not math.isfinite(value)
            ]
            if bad:
                sequences = entries[micro] % len(self.loader.store)
                bad_batches.append(
                    (
                        ", ".join(bad),
                        f"rank {self.loader.rank}, micro-batch {micro + 1} of {len(result.sums)}",
                        ", ".join(map(str, sequences[:8])) + (" …" if len(sequences) > 8 else ""),
                    )
                )
        all_bad_batches = [row for rows in all_gather_object(bad_batches) for row in rows]
        if not all_bad_batches:
            return "the sum of the losses is not finite"
        losses, place, sequences = all_bad_batches[0]
        others = f", and {len(all_bad_batches) - 1} more micro-batches" if len(all_bad_batches) > 1 else ""
        return f"loss {losses} ({place}, sequences {sequences}{others})"
