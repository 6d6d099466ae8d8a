"""The section of a recipe on batch, length of the run, optimizer and engine."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from ds_distill.config.intervals import Interval
from ds_distill.config.limits import limited
from ds_distill.config.recipe_file import DEEPSPEED, find_file
from ds_distill.config.values import UserPath
from ds_distill.tracking.choice import Tracker
from ds_distill.utils.errors import UserError

# Keys of zero_optimization that round or delay what ranks send each other, and values that mean not to.
LOSSY_ZERO = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "zenflow")
NOT_LOSSY = (None, False, "auto", "fp32")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object as a dict; raise ValueError where a key stands twice, since one would be lost."""
    keys = dict(pairs)
    if duplicates := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {duplicates[0]} is given twice in one object")
    return keys


@dataclass
class Training:
    """Batch, length of the run, optimizer and engine.

    Args:
        global_batch_size: Sequences per optimizer step, over all ranks and accumulation steps.
        micro_batch_size: Maximum number of sequences per rank and forward pass. The run uses the largest
            number up to this one that divides a rank's share of the global batch, and accumulates the
            gradients of several micro-batches. Where the ranks cannot have equal shares, the smaller shares are
            topped up with filler rows, which no loss counts. "auto": the largest micro-batch that fits in memory
            (distill only).
        max_tokens: Stop after this many tokens; 0: stop after `epochs`.
        epochs: Passes over the data when max_tokens is 0.
        learning_rate: Peak learning rate, after a linear warm-up and before a linear decay to zero.
        encoder_learning_rate: For `pretrain --from`: peak learning rate of all weights except the masked-LM
            head; 0 trains the head alone. learning_rate by default.
        warmup_ratio: Fraction of the optimizer steps for the warm-up.
        stage_schedule: What the learning rate's warm-up and decay span in a recipe with stages: each "stage" by itself,
            as in TinyBERT, or the whole "run". The optimizer's moments begin anew with each stage.
        weight_decay: AdamW's weight decay; biases and norm weights are never decayed.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        max_grad_norm: Maximum norm of the global gradient, for clipping; 0: no clipping.
        dropout: Hidden and attention dropout of the trained model.
        seed: Seed of the data order, masks, dropout and random initialization.
        device: "auto" uses a GPU if there is one, "cuda" requires a GPU, "cpu" never uses one.
        precision: "auto": bf16 on CUDA (fp16 on GPUs before Ampere); on a CPU bf16 if a probe shows that
            it is faster, else fp32.
        teacher_precision: "auto": the student's precision on a CPU and beside an fp32 student; else, on a GPU, fp16,
            or bf16 for a teacher that was saved in bf16, because its activations may be too large for fp16. The run
            ends at its start if the teacher's outputs are not finite.
        optimizer: "auto": DeepSpeed's FusedAdam if it can be compiled (once per environment, about a
            minute), else torch's fused AdamW.
        compile: Whether torch.compile fuses the operations between the matrix products. "auto": only if the
            run is long enough to repay the compilation. On a GPU, the vocabulary loss uses its Triton kernel
            unless this is "off".
        deepspeed: Path of a DeepSpeed JSON with zero_optimization, or the name of one that ships with the package
            (zero0 to zero3, zero2_offload); batch sizes, clipping, optimizer, schedule and precision are always
            the recipe's. By default ZeRO stage 0 in fp32, and stage 1 in 16 bit, where it is faster even on one rank.
        gradient_checkpointing: Recompute activations in the backward pass, which is slower but uses less memory.
        max_skipped: Maximum number of consecutive steps that may be skipped because the loss or a gradient is
            not finite; after that the run ends.
        save_every: Optimizer steps between checkpoints, or a time, such as 90s, 10m or 1h; 0: only at the end;
            "auto": 10m.
        save_total_limit: Number of checkpoints to keep.
        eval_every: Optimizer steps between held-out evaluations, or a time, such as 10m; 0: only at the end;
            "auto": a tenth of the run, and every 500 steps as long as all evaluations take at most 2 % of the time.
        eval_max_sequences: Maximum number of held-out sequences per evaluation.
        resume: "auto" resumes the run in the output folder; "never" refuses a folder that has one.
        report_to: Trackers that get the run's figures while it trains; []: none.
    """

    global_batch_size: int = limited(64, 1, 1 << 24)
    micro_batch_size: int | Literal["auto"] = limited(16, 1, 1 << 20, word="auto")
    max_tokens: int = limited(0, 0, 10**15)
    epochs: int = limited(3, 1, 10**6)
    learning_rate: float = limited(5e-4, 0, 10)
    encoder_learning_rate: float | None = limited(None, 0, 10)
    warmup_ratio: float = limited(0.05, 0, 1)
    stage_schedule: Literal["stage", "run"] = "stage"
    weight_decay: float = limited(0.0, 0, 10)
    betas: tuple[float, float] = limited((0.9, 0.98), 0, 0.99999, each=True)
    eps: float = limited(1e-6, 1e-15, 1)
    max_grad_norm: float = limited(5.0, 0, 1e9)
    dropout: float = limited(0.1, 0, 0.99)
    seed: int = limited(0, 0, 2**63 - 1)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    teacher_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    optimizer: Literal["auto", "deepspeed", "torch", "apex"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    deepspeed: UserPath | None = None
    gradient_checkpointing: bool = False
    max_skipped: int = limited(20, 1, 10**9)
    save_every: Interval = "auto"
    save_total_limit: int = limited(2, 1, 10**6)
    eval_every: Interval = "auto"
    eval_max_sequences: int = limited(256, 1, 10**9)
    resume: Literal["auto", "never"] = "auto"
    report_to: list[Tracker] = field(default_factory=lambda: ["tensorboard"])

    def micro_batches(self, ranks: int) -> list[int]:
        """Return the sizes of a micro-batch that leave the least to fill up, the largest first.

        Where the ranks have equal shares of the global batch, these are the divisors of a share. Else
        they are those of the largest share that differ in the number of micro-batches.
        """
        share, rest = divmod(self.global_batch_size, ranks)
        if not rest:
            return [size for size in range(share, 0, -1) if share % size == 0]
        return sorted({-(-(share + 1) // parts) for parts in range(1, share + 2)}, reverse=True)

    def resolve_micro_batch(self, ranks: int) -> int:
        """Return the micro-batch that a run on `ranks` ranks uses, where the recipe gives it as a number."""
        return next(size for size in self.micro_batches(ranks) if size <= cast(int, self.micro_batch_size))

    def deepspeed_file(self) -> Path:
        """Return the path of the DeepSpeed JSON; raise UserError for a name that no shipped one has."""
        return find_file(cast(str, self.deepspeed), f"training.deepspeed = {self.deepspeed}", DEEPSPEED)

    def deepspeed_identity(self) -> dict:
        """Return what of the DeepSpeed JSON changes results by more than the order of sums, by dotted key."""
        content = self.deepspeed_json()
        zero = content.get("zero_optimization", {})
        found = {f"zero_optimization.{key}": zero.get(key) for key in LOSSY_ZERO}
        found["communication_data_type"] = content.get("communication_data_type")
        return {f"training.deepspeed.{key}": value for key, value in found.items() if value not in NOT_LOSSY}

    def deepspeed_json(self) -> dict:
        """Return the content of the DeepSpeed JSON, or an empty dict where the recipe names none.

        Raises:
            UserError: If the file is not JSON, or has no ZeRO stage where one belongs.
        """
        try:
            text = self.deepspeed_file().read_text(encoding="utf-8-sig") if self.deepspeed else "{}"
            config = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"training.deepspeed = {self.deepspeed}: not valid JSON ({error}); correct the file"
            ) from error
        zero_config = config.get("zero_optimization", {}) if isinstance(config, dict) else None
        if not isinstance(zero_config, dict) or not isinstance(zero_config.get("offload_optimizer", {}), dict):
            raise UserError(
                f"training.deepspeed = {self.deepspeed}: must be a JSON object, and so must zero_optimization and its "
                "offload_optimizer, if they are given"
            )
        if (stage := zero_config.get("stage", 0)) not in (0, 1, 2, 3) or isinstance(stage, bool):
            raise UserError(
                f"training.deepspeed = {self.deepspeed}: zero_optimization.stage = {json.dumps(stage)}: must "
                "be 0, 1, 2 or 3"
            )
        return config
