"""The recipe of a run: the only place where a default of its settings lives."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from ds_distill.config.intervals import Interval
from ds_distill.config.limits import limited, limited_values
from ds_distill.config.losses import Losses, Match, Stage
from ds_distill.config.recipe_file import (
    RECIPES,
    SHIPPED_ROOT,
    find_file,
    load_recipe_file,
    read_settings,
    setting_name,
)
from ds_distill.config.training import Training
from ds_distill.config.unknown_keys import unknown_key_message
from ds_distill.config.values import Name, UserPath, convert
from ds_distill.tracking.choice import Tracker
from ds_distill.utils.errors import UserError


@dataclass
class Student:
    """Shape and initialization of the student.

    Args:
        init_layers: Teacher layers that initialize the student: "every_other" (evenly spaced, including the
            first and the last; one layer: the first), "inner" (evenly spaced between the first and the last, [1, 2, 4]
            of six), "random" for random weights, or a list of layer numbers, counted from 0.
        num_layers: Number of layers; half the teacher's by default.
        hidden_size: Hidden size; the teacher's by default. A smaller student is initialized from the first
            rows and columns of the teacher's weights.
        num_attention_heads: Number of attention heads; by default the teacher's, reduced as hidden_size is. A narrower
            student with as many as its teacher, as TinyBERT, is initialized from the first dimensions of each head.
        intermediate_size: Width of the feed-forward layers; by default the teacher's, reduced as hidden_size is. A
            smaller one is initialized from the first columns of the teacher's.
        embedding_size: Width of the embeddings; by default the teacher's, reduced as hidden_size is. A smaller one is
            initialized from the principal components of the teacher's embeddings, tokens weighted by how often the
            text has them, with a projection on the hidden size behind them. The student is then an ELECTRA.
        num_hidden_groups: Number of groups of consecutive layers that share their weights; by default each layer has
            its own. A group is initialized from the mean of its layers. The student is then an ALBERT.
        linear_rank: Rank of a low-rank factorization: two factors replace each linear layer that this makes smaller. By
            default, layers are not factorized. The factors are initialized to minimize the error on the text. The
            saved folder holds their products, so that the stock class loads it, and is not smaller; exports to other
            runtimes are.
        family: Family of the student's class, by its model_type: the teacher's own or, whatever the teacher, "bert",
            "distilbert", "electra", "albert" or "modernbert". A student of another class than its teacher is
            initialized from what both classes have in common: the layers (of all families but ModernBERT), or else
            the word embeddings. By default, the family that embedding_size or num_hidden_groups requires; otherwise
            "distilbert" if the teacher is a BERT (a DistilBERT has no token types), and the teacher's own family if
            it is not.
        freeze_positions: Keep the position embeddings fixed, as in the authors' code, which created them as fixed
            sinusoidal embeddings and then overwrote their values with BERT's. A model with rotary positions has
            none, and is refused.
        from_: Start from this model, an earlier student for example, instead of the teacher's layers: a folder,
            the --output of a run, or a name on the Hub. It keeps its own shape, and must have the teacher's
            vocabulary.
    """

    init_layers: str | list[int] = "every_other"
    num_layers: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    embedding_size: int | None = None
    num_hidden_groups: int | None = None
    linear_rank: int | None = None
    family: Name | None = None
    freeze_positions: bool = False
    from_: UserPath | None = None


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
            kl and mlm look at the masked ones alone; 1 masks none and leaves these two losses out, so that the
            student is a bare encoder. Held-out text is always masked.
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
        self._check_stages()
        objectives = {"losses": losses} | self.given_losses()
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
            for key in (key for key in vars(self.student) if key not in ("freeze_positions", "from_")):
                if (value := getattr(self.student, key)) != (default := getattr(Student(), key)):
                    raise UserError(
                        f"student.from = {self.student.from_}: the student keeps the class and the shape of that "
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

    def _check_stages(self) -> None:
        """Raise UserError for a stage that makes no sense."""
        self.stages = convert(self.stages, list[Stage], "stages")
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
            if stage.teacher_forced and (layers != parts or not layers):
                raise UserError(
                    f"{key}.learnable = {stage.learnable}: with teacher_forced, which trains single layers on the "
                    "teacher's states, give a list of student layers, such as [0]"
                )
            if stage.teacher_forced and losses.need_vocabulary:
                raise UserError(
                    f"{key}.losses: teacher_forced trains single layers, which reach no loss over the vocabulary; set "
                    f"kl and mlm to 0 (now {losses.kl:g} and {losses.mlm:g})"
                )
            if "teacher_weights" in stage.losses:
                raise UserError(
                    f"{key}.losses.teacher_weights: the mean of several teachers is that of the whole run; give "
                    "losses.teacher_weights instead"
                )
        shares = [stage.share for stage in self.stages]
        if shares and abs(math.fsum(shares) - 1) > 1e-6:
            raise UserError(f"stages: the shares {shares} sum to {math.fsum(shares):g}; they must sum to 1")

    def given_losses(self) -> dict[str, Losses]:
        """Return the losses of each stage by their key, as given; those of the whole run where there are no stages."""
        of_stages = {
            f"stages[{index}].losses": replace(self.losses, **stage.losses) for index, stage in enumerate(self.stages)
        }
        return of_stages or {"losses": self.losses}

    def trained_losses(self, stage: Stage | None = None) -> Losses:
        """Return the losses, of a stage where one is given, without those that have no masked sequence to look at."""
        losses = replace(self.losses, **(stage.losses if stage else {}))
        return losses.without_vocabulary() if self.data.clean_fraction == 1 else losses

    def losses_by_share(self) -> list[tuple[float, Losses]]:
        """Return (share of the run, losses) for each stage; for the whole run where there are no stages."""
        return [(stage.share, self.trained_losses(stage)) for stage in self.stages] or [(1.0, self.trained_losses())]

    @property
    def need_teacher(self) -> bool:
        """Whether a term, of any stage, compares the student with a teacher."""
        return any(losses.need_teacher for _, losses in self.losses_by_share())

    @property
    def need_vocabulary(self) -> bool:
        """Whether a term, of any stage, is over the vocabulary, so that the student has a masked-LM head."""
        return any(losses.need_vocabulary for _, losses in self.losses_by_share())

    @property
    def leaves_losses_open(self) -> bool:
        """Whether all losses are the defaults, and no stage has losses of its own."""
        return self.losses == Losses() and not any(stage.losses for stage in self.stages)

    @property
    def compares_logits(self) -> bool:
        """Whether a term, of any stage, compares logits with the teachers'."""
        return any(losses.kl for _, losses in self.losses_by_share())

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
        keys["losses.match"] = [_match_identity(match) for match in keys["losses.match"]]
        shapes = ("num_attention_heads", "intermediate_size", "embedding_size", "num_hidden_groups", "linear_rank")
        for key in (*shapes, "family"):
            if not keys[f"student.{key}"]:
                del keys[f"student.{key}"]  # nor these
        if not keys["data.clean_fraction"]:
            del keys["data.clean_fraction"]  # nor this
        if self.stages:
            keys["stages"] = [
                {key: value for key, value in asdict(stage).items() if key != "quantize" or value}
                for stage in self.stages
            ]
        else:
            del keys["training.stage_schedule"]
        keys |= self.training.deepspeed_identity()
        return json.loads(json.dumps(keys))


def _match_identity(match: dict) -> dict:
    """Return the keys of an entry of losses.match that count; earlier versions had no `heads` and no `normalize`."""
    return {key: value for key, value in match.items() if key not in ("heads", "normalize") or value}
