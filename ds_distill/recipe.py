"""The recipe of a run: the only place where a default of its settings lives."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_type_hints

from ds_distill.config.intervals import Interval
from ds_distill.config.recipe_file import (
    DEEPSPEED,
    RECIPES,
    SHIPPED_ROOT,
    find_file,
    load_recipe_file,
    read_settings,
    setting_name,
)
from ds_distill.config.unknown_keys import unknown_key_message
from ds_distill.config.values import Reader, UserPath, convert
from ds_distill.tracking.choice import Tracker
from ds_distill.utils.errors import UserError, did_you_mean

# Keys of zero_optimization that round or delay what ranks send each other, and values that mean not to.
LOSSY_ZERO = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "zenflow")
NOT_LOSSY = (None, False, "auto", "fp32")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """Return a JSON object as a dict; raise ValueError where a key stands twice, since one would be lost."""
    keys = dict(pairs)
    if duplicates := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {duplicates[0]} is given twice in one object")
    return keys


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
    """An additional loss term that compares hidden states of the student with those of the teacher.

    Args:
        loss: Name of the loss: a key of LOSSES in ds_distill/losses/matching.py.
        of: What to compare: "hidden", the hidden states after a layer.
        layers: Layers to compare: "last", "mapped" (each student layer with the teacher layer that it was
            initialized from), or a list of pairs [student layer, teacher layer], counted from 0.
        weight: Weight of the term, which is a mean over real tokens, summed over the layer pairs.
    """

    loss: str
    of: Literal["hidden"] = "hidden"
    layers: Literal["last", "mapped"] | list[tuple[int, int]] = "mapped"
    weight: float = limited(1.0, 0, 1e6)


@dataclass
class Losses:
    """Weights of the triple loss (Sanh et al. 2019, section 2; values from the authors' code).

    Args:
        kl: Weight of T² · KL(teacher ‖ student), averaged over the tokens that kl_tokens selects.
        mlm: Weight of the masked-LM cross-entropy.
        cosine: Weight of 1 − cos(student, teacher) of the last hidden states.
        temperature: Temperature T that divides both the teacher's and the student's logits in the KL term.
        kl_tokens: Tokens in the KL term: "all" real tokens, as in the authors' code, or only the "masked"
            ones.
        match: Additional loss terms, each {loss, of, layers, weight}; none by default.
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

    @property
    def need_vocabulary(self) -> bool:
        """Whether a term compares logits, so that the model's masked-LM head learns."""
        return bool(self.kl or self.mlm)

    def matched_terms(self) -> dict[str, Match]:
        """Return the terms that compare hidden states, by name: the cosine loss of the last ones, then `match`.

        A loss that occurs twice has a number from its second time on.
        """
        entries = [Match("cosine", layers="last", weight=self.cosine)] if self.cosine else []
        terms: dict[str, Match] = {}
        times: Counter[str] = Counter()
        for match in [*entries, *self.match]:
            times[match.loss] += 1
            terms[match.loss if times[match.loss] == 1 else f"{match.loss}_{times[match.loss]}"] = match
        return terms

    def without_vocabulary(self) -> Self:
        """Return the terms that compare what lies inside, alone."""
        return replace(self, kl=0.0, mlm=0.0)

    def without_teacher(self) -> Self:
        """Return the masked-LM loss alone, with its weight."""
        return replace(self, kl=0.0, cosine=0.0, match=[])


def _read_losses(value: Any, key: str) -> dict[str, Any]:
    """Return some settings of the losses by name; raise UserError for one that does not exist."""
    hints, given = get_type_hints(Losses), convert(value, dict[str, Any], key)
    for name in given:
        if name not in hints:
            raise UserError(f"{key}.{name}: no such key{did_you_mean(name, hints)} ({', '.join(hints)})")
    return {name: convert(entry, hints[name], f"{key}.{name}") for name, entry in given.items()}


@dataclass
class Stage:
    """A part of a run that has an objective and learnable parts of its own.

    Args:
        share: Share of the run's steps, above 0. The shares of all stages must sum to 1.
        losses: Settings of `losses` that this stage has in place of the recipe's, such as {kl: 0, mlm: 0}.
        learnable: What trains: "all", or a list of student layers, counted from 0, and of "embeddings" (with which a
            tied decoder is shared) and "head". Everything else stays exactly as it is.
        teacher_forced: Train each learnable layer by itself: its input is what the teacher feeds into the span of
            layers that this student layer stands for. The span ends at the layer that the terms in losses.match pair
            it with, and begins after that of the student layer below. For terms of hidden states, without kl and mlm.
        learning_rate: Peak learning rate of this stage; that of `training` by default.
    """

    share: float = field(metadata={"limits": (0, 1), "word": "", "each": False})
    losses: Annotated[dict[str, Any], Reader("mapping", _read_losses)] = field(default_factory=dict)
    learnable: Literal["all"] | list[int | Literal["embeddings", "head"]] = "all"
    teacher_forced: bool = False
    learning_rate: float | None = limited(None, 0, 10)


@dataclass
class Student:
    """Shape and initialization of the student.

    Args:
        init_layers: Teacher layers that initialize the student: "every_other" (evenly spaced, including the
            first and the last; one layer: the first), "random" for random weights, or a list of layer
            numbers, counted from 0.
        num_layers: Number of layers; half the teacher's by default.
        hidden_size: Hidden size; the teacher's by default. A smaller student is initialized from the first
            rows and columns of the teacher's weights.
        freeze_positions: Keep the position embeddings fixed. In the authors' code they were fixed, because
            they were sinusoidal before BERT's overwrote them.
        from_: Start from this model, an earlier student for example, instead of the teacher's layers: a folder,
            the --output of a run, or a name on the Hub. It keeps its own shape, and must have the teacher's
            vocabulary.
    """

    init_layers: str | list[int] = "every_other"
    num_layers: int | None = None
    hidden_size: int | None = None
    freeze_positions: bool = False
    from_: UserPath | None = None


@dataclass
class Training:
    """Batch, length of the run, optimizer and engine.

    Args:
        global_batch_size: Sequences per optimizer step, over all ranks and accumulation steps.
        micro_batch_size: Maximum number of sequences per rank and forward pass. The run uses the largest
            number up to this one that divides a rank's share of the global batch, and accumulates the
            gradients of several micro-batches. Where the ranks cannot have equal shares, rows that no loss
            counts fill up the smaller ones. "auto": the largest micro-batch that fits in memory (distill only).
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


@dataclass
class Data:
    """Preparation and masking of the text.

    Args:
        mode: "packed": documents are concatenated and cut into full sequences, without padding; "lines": each
            line is one sequence, as in the authors' data.
        sequence_length: Tokens per sequence, including [CLS] and [SEP]; in mode "lines" the maximum.
        heldout_fraction: Fraction of the documents that is held out from training.
        drop_duplicates: Leave out documents whose text occurred before in the corpus; the text is then read twice.
        column: Text column of jsonl, csv, tsv and parquet files and Hub data sets; FILE#COLUMN selects another
            one for one input.
        weights: How often an epoch reads each source, in the order of --corpus: 2 reads it twice, 0.5 reads a
            random half of it; default: each once.
        attend_across_documents: Whether tokens attend to the other documents in their packed sequence.
        mlm_probability: Fraction of a sequence's tokens, special tokens aside, that is masked.
        clean_fraction: Fraction of the training sequences that is not masked at all, others in each epoch. The losses
            kl and mlm look at the masked ones alone; 1 masks none, and leaves these two losses out. Held-out text is
            always masked.
        mlm_smoothing: Exponent s of the masking probability ∝ count^−s, which masks rare tokens more often;
            0 masks all tokens equally often.
        whole_word_masking: Mask all pieces of a word together, each word with the same probability; in scripts
            without spaces each piece counts as a word.
        streaming: Read Hub data sets while they are downloaded; false downloads them first, or reads the local
            cache.
        workers: Number of processes that prepare the data; 0: one per core.
    """

    mode: Literal["packed", "lines"] = "packed"
    sequence_length: int = limited(128, 8, 1 << 16)
    heldout_fraction: float = limited(0.02, 0, 0.5)
    drop_duplicates: bool = False
    column: str = "text"
    weights: list[float] | None = limited(None, 0, 1e6, each=True)
    attend_across_documents: bool = True
    mlm_probability: float = limited(0.15, 0.01, 0.9)
    clean_fraction: float = limited(0.0, 0, 1)
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
    stages: list[Stage] = field(default_factory=list)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Return the recipe in a YAML file, as --config reads it; what the file leaves out has its default.

        A file may also hold options of commands, such as teacher and corpus. They are arguments of `distill`, not
        settings of a recipe, and are not read.

        Args:
            file: A path, or the name of a recipe that ships with the package, such as "few_tokens".

        Raises:
            UserError: There is no such file, or a key or a value in it is not one of a recipe.
        """
        recipe, source = cls(), f"recipe {file}"
        keys = load_recipe_file(find_file(str(file), source, RECIPES), source)
        sections = {name: section for name, section in vars(recipe).items() if name != "stages"}
        others = read_settings(sections, keys, source, {"stages": list[Stage]})
        recipe.stages = others.get("stages", recipe.stages)
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise UserError for the first value that makes no sense, before anything is allocated."""
        # from Python anything may be there
        self.losses.match = convert(self.losses.match, list[Match], "losses.match")
        self.training.report_to = convert(self.training.report_to, list[Tracker], "training.report_to")
        for key in ("save_every", "eval_every"):
            setattr(self.training, key, convert(getattr(self.training, key), Interval, f"training.{key}"))
        training, data, losses = self.training, self.data, self.losses
        sections: dict[str, Any] = {"training": training, "data": data, "losses": losses, "student": self.student}
        objectives = {"losses": losses} | self._check_stages()
        sections |= objectives | {f"stages[{index}]": stage for index, stage in enumerate(self.stages)}
        sections |= {
            f"{key}.match[{index}]": match
            for key, given in objectives.items()
            for index, match in enumerate(given.match)
        }
        for name, section in sections.items():
            for key in vars(section).keys() - section.__dataclass_fields__.keys():  # set in Python
                raise UserError(unknown_key_message(f"{name}.{key}", self.setting_names(), dashes=""))
            for key, value, low, high in limited_values(section):
                if value is None or not low <= value <= high:
                    raise UserError(f"{name}.{key} = {value}: must be between {low} and {high:g}")
        tokens = data.sequence_length - 2  # [CLS] and [SEP] are never masked
        if round(data.mlm_probability * tokens) == 0:
            raise UserError(
                f"data.mlm_probability = {data.mlm_probability}: too small to mask any of the {tokens} tokens of a "
                f"sequence (data.sequence_length = {data.sequence_length}); "
                f"use {math.ceil(501 / tokens) / 1000} or more, which masks one"
            )
        if self.student.from_ is not None:
            for key in ("init_layers", "num_layers", "hidden_size"):
                if (value := getattr(self.student, key)) != (default := getattr(Student(), key)):
                    raise UserError(
                        f"student.from = {self.student.from_}: the student keeps the layers and the width of that "
                        f"model, so student.{key} = {value} cannot apply; leave it out, or set it to "
                        f"{'null' if default is None else default}"
                    )
        for key, given in objectives.items():
            if (key == "losses" and self.stages) or given.cosine or any(match.weight for match in given.match):
                continue
            if given.kl == given.mlm == 0:
                raise UserError(
                    f"{key}.kl, {key}.mlm, {key}.cosine and the weights of {key}.match are all 0: nothing would be "
                    "trained; set one of them above 0"
                )
            if data.clean_fraction == 1:
                raise UserError(
                    f"data.clean_fraction = 1: no sequence is masked, so {key}.kl and {key}.mlm have no tokens, and "
                    f"{key}.cosine and the weights of {key}.match are all 0; lower it, or set one of these above 0"
                )
        if training.deepspeed and training.deepspeed_file().exists() and not training.deepspeed_file().is_file():
            raise UserError(
                f"training.deepspeed = {training.deepspeed}: a folder or a pipe; give a file, which can be read more "
                "than once"
            )
        if training.deepspeed and not training.deepspeed_file().is_file():
            raise UserError(
                f"training.deepspeed = {training.deepspeed}: no such file here or in {SHIPPED_ROOT} "
                "(see ds_configs/deepspeed/)"
            )
        training.deepspeed_json()

    def _check_stages(self) -> dict[str, Losses]:
        """Return the losses of each stage by their key; raise UserError for a stage that makes no sense."""
        self.stages = convert(self.stages, list[Stage], "stages")
        objectives: dict[str, Losses] = {}
        for index, stage in enumerate(self.stages):
            key, losses = f"stages[{index}]", self.trained_losses(stage)
            if not stage.share > 0:
                raise UserError(f"{key}.share = {stage.share}: must be above 0; leave the stage out instead")
            parts = stage.learnable if isinstance(stage.learnable, list) else []
            layers = [part for part in parts if isinstance(part, int)]
            if not stage.learnable or len({*parts}) < len(parts) or min(layers, default=0) < 0:
                raise UserError(
                    f"{key}.learnable = {stage.learnable}: give all, or a list of different student layers, counted "
                    "from 0, embeddings and head, such as [embeddings, 0]"
                )
            if stage.teacher_forced and (losses.need_vocabulary or layers != parts or not layers):
                raise UserError(
                    f"{key}.teacher_forced: trains single layers on the teacher's states, so {key}.learnable must be "
                    f"a list of student layers (now {stage.learnable}), and {key}.losses needs kl: 0 and mlm: 0 (now "
                    f"{losses.kl:g} and {losses.mlm:g})"
                )
            objectives[f"{key}.losses"] = replace(self.losses, **stage.losses)
        shares = [stage.share for stage in self.stages]
        if shares and abs(math.fsum(shares) - 1) > 1e-6:
            raise UserError(f"stages: the shares {shares} sum to {math.fsum(shares):g}; they must sum to 1")
        return objectives

    def trained_losses(self, stage: Stage | None = None) -> Losses:
        """Return the losses, of a stage where one is given, without those that have no masked sequence to look at."""
        losses = replace(self.losses, **(stage.losses if stage else {}))
        return losses.without_vocabulary() if self.data.clean_fraction == 1 else losses

    def losses_by_share(self) -> list[tuple[float, Losses]]:
        """Return (share of the run, losses) for each stage; for the whole run where there are no stages."""
        return [(stage.share, self.trained_losses(stage)) for stage in self.stages] or [(1.0, self.trained_losses())]

    def setting_names(self) -> list[str]:
        """Return the dotted names of all settings in sections."""
        return [f"{section}.{key}" for section, settings in self._sections().items() for key in settings]

    def as_dict(self) -> dict:
        """Return the recipe as nested dicts, one per section, with the keys of a recipe file, and any stages."""
        return self._sections() | ({"stages": [asdict(stage) for stage in self.stages]} if self.stages else {})

    def _sections(self) -> dict[str, dict]:
        return {
            section: {setting_name(key): value for key, value in settings.items()}
            for section, settings in asdict(self).items()
            if section != "stages"
        }

    def identity(self) -> dict:
        """Return the settings that decide a run's result, by dotted key.

        Housekeeping, such as how often to save or evaluate, is left out: it may change on resume. So are the paths
        of inputs, such as the model that a student starts from: their contents count.
        """
        keys = {f"{room}.{key}": value for room, values in self._sections().items() for key, value in values.items()}
        for key in (
            "max_skipped",
            "save_every",
            "save_total_limit",
            "resume",
            "report_to",
            "eval_every",
            "eval_max_sequences",
            "deepspeed",
            "device",
            "micro_batch_size",
            "gradient_checkpointing",
            "compile",
        ):
            del keys[f"training.{key}"]
        # the data's own fingerprint tells what was held out or dropped
        for key in ("workers", "streaming", "column", "heldout_fraction", "drop_duplicates"):
            del keys[f"data.{key}"]
        del keys["student.from"]
        if keys["training.teacher_precision"] == "auto":
            del keys["training.teacher_precision"]  # earlier versions had no such key
        if not keys["data.clean_fraction"]:
            del keys["data.clean_fraction"]  # nor this one
        if self.stages:
            keys["stages"] = [asdict(stage) for stage in self.stages]
        else:
            del keys["training.stage_schedule"]
        keys |= self.training.deepspeed_identity()
        return json.loads(json.dumps(keys))
