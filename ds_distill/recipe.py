"""The recipe of a run: the only place where a default lives."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from ds_distill.config.values import UserPath
from ds_distill.utils.errors import UserError

CHECKOUT = Path(__file__).parents[1]


def shipped(path: str) -> Path:
    """Return the file that a recipe or a plan names, from here or from the checkout.

    Files that ship with the project are found in the checkout, wherever the command starts.
    """
    return next((file for file in (Path(path), CHECKOUT / path) if file.is_file()), Path(path))


def _once(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object as a dict; raise ValueError where a key stands twice, since one would be lost."""
    found = dict(pairs)
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {twice[0]} stands twice in one object")
    return found


def limited(default: Any, low: float, high: float, word: str = "", each: bool = False) -> Any:
    """Return a dataclass field whose value must be between two limits, as `Recipe.check` sees to.

    Args:
        default: The default. Where it is None, None is no number to check.
        low: The least value.
        high: The greatest value.
        word: A word that may stand in place of the number.
        each: Whether the value is a list, each entry of which is checked.
    """
    return field(default=default, metadata={"limits": (low, high), "word": word, "each": each})


def limited_values(section: Any) -> Iterator[tuple[str, Any, float, float]]:
    """Yield (key, value, low, high) for each number of a section that has limits."""
    for setting in fields(section):
        value, limits = getattr(section, setting.name), setting.metadata.get("limits")
        if not limits or (value is None and setting.default is None):
            continue
        if setting.metadata["each"]:
            for index, entry in enumerate(value):
                yield f"{setting.name}[{index}]", entry, *limits
        elif value != setting.metadata["word"]:
            yield setting.name, value, *limits


@dataclass
class Match:
    """One more loss term, which compares what lies inside student and teacher.

    Args:
        loss: Name of the loss: a key of LOSSES in ds_distill/losses/matching.py.
        of: What is compared: "hidden", the hidden states after a layer.
        layers: "last", "mapped" (each student layer with the teacher layer that it started from), or
            a list of pairs [student layer, teacher layer], from 0.
        weight: Weight of the term, which is a mean over real tokens, summed over the layers.
    """

    loss: str
    of: Literal["hidden"] = "hidden"
    layers: Literal["last", "mapped"] | list[tuple[int, int]] = "mapped"
    weight: float = limited(1.0, 0, 1e6)


@dataclass
class Losses:
    """Weights of the triple loss (Sanh et al. 2019, section 2; values from the authors' code).

    Args:
        kl: Weight of T² · KL(teacher ‖ student) over real tokens.
        mlm: Weight of the masked-LM cross-entropy.
        cosine: Weight of 1 − cos(student, teacher) on the last hidden state.
        temperature: T, on both sides of the KL.
        kl_tokens: "all" real tokens, or only "masked" ones, which is a different objective.
        match: More terms, each {loss, of, layers, weight}; none when not given.
    """

    kl: float = limited(5.0, 0, 1e6)
    mlm: float = limited(2.0, 0, 1e6)
    cosine: float = limited(1.0, 0, 1e6)
    temperature: float = limited(2.0, 0.01, 1e3)
    kl_tokens: Literal["all", "masked"] = "all"
    match: list[Match] = field(default_factory=list)

    @property
    def need_teacher(self) -> bool:
        """Whether a term compares the student with a teacher."""
        return bool(self.kl or self.cosine or self.match)

    def without_teacher(self) -> Self:
        """Return the masked-LM loss alone, with its weight."""
        return replace(self, kl=0.0, cosine=0.0, match=[])


@dataclass
class Student:
    """The student's shape and start.

    Args:
        init_layers: "every_other" (evenly spaced, first and last included), "random", or a list of
            teacher layers.
        num_layers: Number of layers; half the teacher's when not given.
        hidden_size: Hidden size; the teacher's when not given. A smaller one starts from the first rows
            and columns of the teacher's weights.
        freeze_positions: The authors' positions were sinusoidal, so frozen, and then overwritten by
            BERT's; false trains them.
    """

    init_layers: str | list[int] = "every_other"
    num_layers: int | None = None
    hidden_size: int | None = None
    freeze_positions: bool = False


@dataclass
class Training:
    """Batch, length of the run, optimizer and engine.

    Args:
        global_batch_size: Sequences an optimizer step, over all ranks and accumulation steps.
        micro_batch_size: Sequences a rank and forward pass, at most: the largest number that divides a
            rank's share of the global batch, which accumulation follows from. "auto": for distill,
            the most that fit the memory.
        max_tokens: Stop after this many tokens; 0: after `epochs`.
        epochs: Passes over the data where max_tokens is 0.
        learning_rate: Peak; linear warm-up, then linear to zero.
        encoder_learning_rate: Of `pretrain --from`, for all but the masked-LM head; 0 trains the head
            alone; learning_rate when not given.
        warmup_ratio: Share of the steps that warm up.
        weight_decay: Never on a bias or a norm.
        betas: AdamW's.
        eps: AdamW's.
        max_grad_norm: Largest norm of the global gradient; 0 does not clip.
        dropout: Hidden and attention dropout of the trained model.
        seed: Order, masks, dropout and random starts follow from it.
        device: "auto" takes a GPU where there is one; "cuda" insists on it, "cpu" leaves it alone.
        precision: "auto": bf16 on CUDA (fp16 on GPUs before Ampere), on CPU bf16 where a probe
            shows it faster, else fp32.
        optimizer: "auto": DeepSpeed's FusedAdam where it can be built (once an environment, about a
            minute), else torch's fused AdamW.
        compile: Whether torch.compile makes kernels of what lies between the matrix products:
            "auto" where the run is long enough to earn it back. On a GPU the vocabulary loss has
            its kernel in Triton either way, but with "off".
        deepspeed: Path of a DeepSpeed JSON (ds_configs/deepspeed/), which owns zero_optimization
            only. Without one ZeRO stage 0 in fp32 and stage 1 in 16 bit, where it is faster even on
            one rank.
        gradient_checkpointing: Recompute activations in the backward pass: slower, less memory.
        max_skipped: Steps in a row that may be skipped because loss or gradient is not finite,
            before the run ends.
        save_every: Optimizer steps between checkpoints; 0: only at the end.
        save_total_limit: How many to keep.
        eval_every: Optimizer steps between held-out evaluations; 0: only at the end.
        eval_max_sequences: Held-out blocks evaluated, at most.
        resume: "auto" goes on where the output folder's run stopped; "never" refuses a used folder.
    """

    global_batch_size: int = limited(64, 1, 1 << 24)
    micro_batch_size: int | Literal["auto"] = limited(16, 1, 1 << 20, word="auto")
    max_tokens: int = limited(0, 0, 10**15)
    epochs: int = limited(3, 1, 10**6)
    learning_rate: float = limited(5e-4, 0, 10)
    encoder_learning_rate: float | None = limited(None, 0, 10)
    warmup_ratio: float = limited(0.05, 0, 1)
    weight_decay: float = limited(0.0, 0, 10)
    betas: tuple[float, float] = limited((0.9, 0.98), 0, 0.99999, each=True)
    eps: float = limited(1e-6, 1e-15, 1)
    max_grad_norm: float = limited(5.0, 0, 1e9)
    dropout: float = limited(0.1, 0, 0.99)
    seed: int = limited(0, 0, 2**63 - 1)
    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    optimizer: Literal["auto", "deepspeed", "torch", "apex"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    deepspeed: UserPath | None = None
    gradient_checkpointing: bool = False
    max_skipped: int = limited(20, 1, 10**9)
    save_every: int = limited(500, 0, 10**9)
    save_total_limit: int = limited(2, 1, 10**6)
    eval_every: int = limited(500, 0, 10**9)
    eval_max_sequences: int = limited(256, 1, 10**9)
    resume: Literal["auto", "never"] = "auto"

    def share_of(self, ranks: int) -> int:
        """Return how many sequences of the global batch each rank gets.

        Raises:
            UserError: If the ranks cannot have equal shares.
        """
        share, rest = divmod(self.global_batch_size, ranks)
        if rest:
            nearest = " or ".join(str(count * ranks) for count in (share, share + 1) if count)
            raise UserError(
                f"training.global_batch_size = {self.global_batch_size}: not to be shared evenly among {ranks} ranks; "
                f"use {nearest}"
            )
        return share

    def micro_batches(self, ranks: int) -> list[int]:
        """Return the divisors of a rank's share of the global batch, the largest first."""
        share = self.share_of(ranks)
        return [size for size in range(share, 0, -1) if share % size == 0]

    def micro_batch_of(self, ranks: int) -> int:
        """Return the micro-batch that a run on `ranks` ranks uses, where the recipe gives it as a number."""
        return next(size for size in self.micro_batches(ranks) if size <= cast(int, self.micro_batch_size))

    def deepspeed_file(self) -> Path:
        """Return the path of the DeepSpeed JSON, from here or from the checkout."""
        return shipped(cast(str, self.deepspeed))

    def deepspeed_json(self) -> dict:
        """Return the content of the DeepSpeed JSON, or an empty dict where the recipe names none.

        Raises:
            UserError: If the file is not JSON, or has no ZeRO stage where one belongs.
        """
        try:
            text = self.deepspeed_file().read_text(encoding="utf-8-sig") if self.deepspeed else "{}"
            said = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise UserError(f"training.deepspeed = {self.deepspeed}: not JSON ({error})") from error
        zero = said.get("zero_optimization", {}) if isinstance(said, dict) else None
        if not isinstance(zero, dict) or not isinstance(zero.get("offload_optimizer", {}), dict):
            raise UserError(
                f"training.deepspeed = {self.deepspeed}: must be an object, and so zero_optimization and its "
                "offload_optimizer, if there"
            )
        if (stage := zero.get("stage", 0)) not in (0, 1, 2, 3) or isinstance(stage, bool):
            raise UserError(
                f"training.deepspeed = {self.deepspeed}: zero_optimization.stage = {json.dumps(stage)}: must "
                "be 0, 1, 2 or 3"
            )
        return said


@dataclass
class Data:
    """How text becomes blocks.

    Args:
        mode: "packed": documents fill whole blocks, nothing is padding; "lines": a line is a
            sequence (the authors' data).
        sequence_length: Tokens a sequence, [CLS] and [SEP] included; at most so many in
            mode "lines".
        heldout_fraction: Share of the documents kept out of training.
        column: Of jsonl, csv, tsv and parquet files and hub data sets; FILE#COLUMN names another
            for one input.
        weights: How often an epoch sees each source, in the order of --corpus: 2 twice, 0.5 a
            random half; once when not given.
        attend_across_documents: Whether the documents of a packed block see each other.
        mlm_probability: Share of a sequence's real tokens that are masked.
        mlm_smoothing: Masking probability ∝ count^−smoothing: rare tokens more often.
        whole_word_masking: Mask all pieces of a word together, each word with the same chance; in
            scripts without spaces a piece is a word.
        streaming: Read hub data sets while they are downloaded; false downloads them first, or
            takes the local cache.
        workers: Processes that prepare; 0: one a core.
    """

    mode: Literal["packed", "lines"] = "packed"
    sequence_length: int = limited(128, 8, 1 << 16)
    heldout_fraction: float = limited(0.02, 0, 0.5)
    column: str = "text"
    weights: list[float] | None = limited(None, 0, 1e6, each=True)
    attend_across_documents: bool = True
    mlm_probability: float = limited(0.15, 0.01, 0.9)
    mlm_smoothing: float = limited(0.7, 0, 5)
    whole_word_masking: bool = False
    streaming: bool = True
    workers: int = limited(0, 0, 4096)


@dataclass
class Recipe:
    """Everything that defines a run beside its inputs and its output folder."""

    data: Data = field(default_factory=Data)
    student: Student = field(default_factory=Student)
    losses: Losses = field(default_factory=Losses)
    training: Training = field(default_factory=Training)

    def check(self) -> None:
        """Raise UserError for the first value that makes no sense, before anything is allocated."""
        t, d, x = self.training, self.data, self.losses
        sections: dict[str, Any] = {"training": t, "data": d, "losses": x}
        sections |= {f"losses.match[{index}]": match for index, match in enumerate(x.match)}
        for name, section in sections.items():
            for key, value, low, high in limited_values(section):
                if value is None or not low <= value <= high:
                    raise UserError(f"{name}.{key} = {value}: must be between {low} and {high:g}")
        tokens = d.sequence_length - 2  # [CLS] and [SEP] are never masked
        if round(d.mlm_probability * tokens) == 0:
            raise UserError(
                f"data.mlm_probability = {d.mlm_probability}: of the {tokens} tokens of a sequence "
                f"(data.sequence_length = {d.sequence_length}) it masks none; "
                f"{math.ceil(501 / tokens) / 1000} masks one"
            )
        if x.kl == x.mlm == x.cosine == 0 and not any(match.weight for match in x.match):
            raise UserError("losses.kl, losses.mlm and losses.cosine are all 0: nothing would be trained")
        if t.deepspeed and t.deepspeed_file().exists() and not t.deepspeed_file().is_file():
            raise UserError(
                f"training.deepspeed = {t.deepspeed}: a folder or a pipe; it is read more than once: give a file"
            )
        if t.deepspeed and not t.deepspeed_file().is_file():
            raise UserError(
                f"training.deepspeed = {t.deepspeed}: no such file, here or in {CHECKOUT} (see ds_configs/deepspeed/)"
            )
        t.deepspeed_json()

    def as_dict(self) -> dict:
        """Return the recipe as nested dicts, one per section."""
        return asdict(self)

    def identity(self) -> dict:
        """Return the settings that decide a run's result, by dotted key.

        Housekeeping, such as how often to save or evaluate, is left out: it may change on resume.
        """
        keys = {f"{room}.{key}": value for room, values in self.as_dict().items() for key, value in values.items()}
        for key in (
            "max_skipped",
            "save_every",
            "save_total_limit",
            "resume",
            "eval_every",
            "eval_max_sequences",
            "deepspeed",
            "device",
            "micro_batch_size",
            "gradient_checkpointing",
            "compile",
        ):
            del keys[f"training.{key}"]
        for key in ("workers", "streaming", "column"):
            del keys[f"data.{key}"]
        return json.loads(json.dumps(keys))
