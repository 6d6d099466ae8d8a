"""The Python interface: `from ds_distill import Recipe, distill, pretrain, evaluate, export, prune`.

The functions do what the commands of the same names do, in a notebook, in a script, or in a script whose ranks a
launcher starts. They return typed summaries, and raise `ds_distill.utils.errors.UserError` for a mistake that the
caller can put right.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ds_distill.config.pruning import Pruning
from ds_distill.distributed import launch_environment
from ds_distill.recipe import Recipe
from ds_distill.run_folder import folder_of_model

PathLike = str | Path
Paths = PathLike | Sequence[PathLike]  # one or several
EVALUATION = "runs/evaluate"  # where `evaluate` keeps tokens unless it is told otherwise


@dataclass(frozen=True)
class RunSummary:
    """The result of a distillation or a pretraining.

    Args:
        export: Folder of the trained model, which loads with transformers.
        parameters: Number of the model's parameters.
        steps: Optimizer steps of the whole run.
        tokens: Real tokens trained on.
        tokens_per_second: Mean rate over all ranks, with evaluations, checkpoints and compiling; None where nothing was
            left to train.
        loss: Weighted loss of the last step, in nats; None where it was not finite.
        heldout_mask_loss: Masked-LM loss on held-out text at the positions that show [MASK], in nats per position; of
            a bare encoder None, as all of the following, since `details` has its held-out terms.
        heldout_mask_loss_se: Its standard error.
        heldout_mask_accuracy: Share of these positions at which the model's top-1 prediction is right.
        heldout_mask_accuracy_se: Its standard error.
        heldout_mask_count: Number of these positions.
        heldout_mlm_loss: The same loss at all selected positions: 80 % show [MASK], 10 % a random token, and 10 % the
            token itself, where the answer is visible.
        heldout_mlm_accuracy: The same share at all selected positions.
        kept: Share of the teacher's accuracy at [MASK] that the student has, of 1; None without a teacher.
        details: Everything in the run's summary.json, such as the figures where a random token or the token itself is
            shown (heldout_random_*, heldout_kept_*). A figure that was not measured is None.
    """

    export: Path
    parameters: int
    steps: int
    tokens: int
    tokens_per_second: float | None
    loss: float | None
    heldout_mask_loss: float | None
    heldout_mask_loss_se: float | None
    heldout_mask_accuracy: float | None
    heldout_mask_accuracy_se: float | None
    heldout_mask_count: int | None
    heldout_mlm_loss: float | None
    heldout_mlm_accuracy: float | None
    kept: float | None
    details: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The held-out figures of one model.

    Args:
        model: The folder, as it was given.
        parameters: Number of its parameters.
        heldout_mask_loss: Masked-LM loss at the positions that show [MASK], in nats per position.
        heldout_mask_loss_se: Its standard error.
        heldout_mask_accuracy: Share of these positions at which the model's top-1 prediction is right.
        heldout_mask_accuracy_se: Its standard error.
        heldout_mask_count: Number of these positions.
        heldout_mlm_loss: The same loss at all selected positions, as in RunSummary.
        heldout_mlm_accuracy: The same share at all selected positions.
        details: All figures, as in summary.json. A figure that was not measured is None.
    """

    model: str
    parameters: int
    heldout_mask_loss: float | None
    heldout_mask_loss_se: float | None
    heldout_mask_accuracy: float | None
    heldout_mask_accuracy_se: float | None
    heldout_mask_count: int
    heldout_mlm_loss: float | None
    heldout_mlm_accuracy: float | None
    details: dict[str, Any]


def distill(
    recipe: Recipe | None = None,
    *,
    teacher: Paths,
    output: PathLike,
    corpus: Paths = (),
    tokens: PathLike | None = None,
    heldout: Paths = (),
    choose_losses: bool = False,
) -> RunSummary:
    """Train a student of a teacher, or of several, evaluate it and export it. Collective under a launcher.

    A run that finds its own checkpoints in `output` resumes from the newest.

    Args:
        recipe: Every setting of the run; without one, the defaults with choose_losses.
        teacher: Folder of a masked-LM model, or the name of one on the Hugging Face Hub, which is fetched once; with
            losses.kl 0, of any encoder. Or several of them with one tokenizer, whose mean the student learns, weighted
            by losses.teacher_weights.
        output: Folder for everything that the run makes.
        corpus: Files, folders, patterns or hub data sets of text; not needed with `tokens`.
        tokens: Folder that `ds-distill prepare` has made.
        heldout: Further texts, each measured on its own along the way.
        choose_losses: Whether to take the losses that the evidence favors for as many tokens, not the recipe's.

    Raises:
        UserError: A mistake in the settings, the text, the teacher or the output folder.
    """
    from ds_distill import pipeline

    with _one_job("distill", recipe):
        return _summary(
            pipeline.prepare_and_distill(
                _checked(recipe or Recipe()),
                _listed(teacher),
                Path(output),
                corpus=_listed(corpus),
                tokens=None if tokens is None else str(tokens),
                heldout=_listed(heldout),
                choose=choose_losses or recipe is None,
            ),
            Path(output),
        )


def pretrain(
    recipe: Recipe,
    *,
    model: dict[str, int] | PathLike,
    output: PathLike,
    tokenizer: PathLike | None = None,
    corpus: Paths = (),
    tokens: PathLike | None = None,
    heldout: Paths = (),
) -> RunSummary:
    """Train an encoder with masked-LM alone, evaluate it and export it. Collective under a launcher.

    Args:
        recipe: Every setting of the run.
        model: Sizes of a new BERT, by the names of transformers' BertConfig; or the folder of an encoder to continue
            with, which is given a masked-LM head if it has none.
        output: Folder for everything that the run makes.
        tokenizer: Folder of the tokenizer; that of `model` when not given.
        corpus: Files, folders, patterns or hub data sets of text; not needed with `tokens`.
        tokens: Folder that `ds-distill prepare` has made.
        heldout: Further texts, each measured on its own along the way.

    Raises:
        UserError: A mistake in the settings, the text, the model or the output folder.
    """
    from ds_distill import pipeline
    from ds_distill.utils.errors import UserError

    if tokenizer is None and isinstance(model, dict):
        raise UserError("tokenizer is missing; a new model needs one, so give the tokenizer's folder")
    with _one_job("pretrain", recipe):
        return _summary(
            pipeline.prepare_and_pretrain(
                _checked(recipe),
                model if isinstance(model, dict) else str(model),
                str(tokenizer or model),
                Path(output),
                corpus=_listed(corpus),
                tokens=None if tokens is None else str(tokens),
                heldout=_listed(heldout),
            ),
            Path(output),
        )


def evaluate(
    models: Paths,
    *,
    recipe: Recipe | None = None,
    corpus: Paths = (),
    tokens: PathLike | None = None,
    output: PathLike | None = None,
    untrained: bool = False,
) -> list[Evaluation]:
    """Measure masked-LM loss and accuracy of Hugging Face folders on held-out text; return them, best first.

    Collective under a launcher. The best has the lowest loss at the positions that show [MASK].

    Args:
        models: Folders, or names on the Hugging Face Hub, which share one tokenizer.
        recipe: Settings of the data; the defaults when not given.
        corpus: Files, folders, patterns or hub data sets of text; not needed with `tokens`.
        tokens: Folder that `ds-distill prepare` has made.
        output: Folder that the tokens of `corpus` are kept in, and bound to; "runs/evaluate", for any text, when not
            given.
        untrained: Also evaluate the first model's architecture with random weights.

    Raises:
        UserError: A mistake in the settings, the text or a model.
    """
    from ds_distill import pipeline

    with _one_job("evaluate", recipe):
        rows = pipeline.prepare_and_evaluate(
            _checked(recipe or Recipe()),
            _listed(models),
            Path(output) if output else None,
            Path(output or EVALUATION) / "tokens",
            corpus=_listed(corpus),
            tokens=None if tokens is None else str(tokens),
            untrained=untrained,
        )
    names = [field.name for field in fields(Evaluation) if field.name != "details"]
    return [Evaluation(**{name: row[name] for name in names}, details=row) for row in rows]


def export(
    model: PathLike,
    *,
    formats: Sequence[str],
    output: PathLike | None = None,
    text: Paths = (),
    sequences: int | None = None,
    data: PathLike | None = None,
    encoder: bool = False,
    calibrate: Paths = (),
) -> dict[str, Any]:
    """Write formats for deployment of a Hugging Face folder, each compared with PyTorch before it takes its place.

    Under a launcher the first rank does it, and the others return at once.

    Args:
        model: Folder of a masked-LM or fine-tuned model.
        formats: Names such as "onnx", "onnx-int8", "onnx-int4", "openvino-int8" and "torch-export".
        output: Folder for them; that of the model, which is in this file system, when not given.
        text: What they are compared on; a sample of the package when not given.
        sequences: How many sequences of it, of up to 128 tokens; 64 when not given.
        data: Labeled examples on which a fine-tuned model is scored before and after.
        encoder: Whether to export the model without its head, for embeddings.
        calibrate: Text, other than `text`, for which int8 files of ONNX Runtime are rounded with less error.

    Returns:
        What summary.json of the command `export` has: under "formats" the files, sizes and differences of each format.
        Nothing on ranks other than the first.

    Raises:
        UserError: An unknown format, a folder without a model, or a format that differs from PyTorch.
    """
    from ds_distill.exporters.formats import export_formats, resolve_formats

    resolve_formats(list(formats), _listed(calibrate))
    output = output or folder_of_model(str(model))
    with _one_job("export") as has_work:
        if not has_work:
            return {}
        return export_formats(
            str(model),
            list(formats),
            Path(output),
            text=_listed(text),
            sequences=sequences,
            data=None if data is None else str(data),
            encoder=encoder,
            calibrate=_listed(calibrate),
        )


def prune(
    model: PathLike,
    cuts: Sequence[Pruning],
    *,
    output: PathLike,
    recipe: Recipe | None = None,
    corpus: Paths = (),
    tokens: PathLike | None = None,
    latency_table: PathLike | None = None,
    compare: bool = False,
    distill: bool = False,
    choose_losses: bool = False,
) -> dict[str, Any]:
    """Take heads, feed-forward columns and sublayers out of a model. Collective under a launcher.

    Args:
        model: Folder, or name on the Hugging Face Hub, of a masked-LM model or an encoder.
        cuts: How to prune; several cuts, of rising speed, with `distill`.
        output: Folder for everything that is made.
        recipe: Settings of the data and of the distillation; the defaults when not given.
        corpus: As in `distill`.
        tokens: As in `distill`.
        latency_table: File of times that were measured before, or to write them to.
        compare: Whether to measure what other methods would have cost.
        distill: Whether to distill the model after each cut, from the whole one.
        choose_losses: As in `distill`.

    Returns:
        What summary.json has: of a cut, or of the last distillation with the cuts under "cuts".

    Raises:
        UserError: A mistake in the settings, the text or the model, or a speed that cannot be reached.
    """
    from ds_distill.prune_pipeline import prepare_and_prune

    with _one_job("prune", recipe):
        return prepare_and_prune(
            _checked(recipe or Recipe()),
            str(model),
            Path(output),
            list(cuts),
            corpus=_listed(corpus),
            tokens=None if tokens is None else str(tokens),
            latency_table=None if latency_table is None else str(latency_table),
            compare=compare,
            distilled=distill,
            choose=choose_losses,
        )


def _listed(paths: Paths) -> list[str]:
    return [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def _checked(recipe: Recipe) -> Recipe:
    recipe.check()
    return recipe


def _summary(details: dict[str, Any], output: Path) -> RunSummary:
    from ds_distill.utils.console import is_first
    from ds_distill.utils.files import write_summary

    if is_first():
        write_summary(details, output)
    named: dict[str, Any] = {
        field.name: details.get(field.name) for field in fields(RunSummary) if field.name != "details"
    }
    return RunSummary(**named | {"export": Path(details["export"])}, details=details)


@contextlib.contextmanager
def _one_job(command: str, recipe: Recipe | None = None) -> Iterator[bool]:
    """Settle which rank this process is and what it computes on; yield whether it has work to do.

    Where it is the only one, a launcher's variables are left as they were.
    """
    from transformers.utils import logging

    if recipe and recipe.training.device == "cpu":
        launch_environment.hide_gpus()
    environment, bars = dict(os.environ), logging.is_progress_bar_enabled()
    has_work = launch_environment.normalize_environment(command)
    logging.disable_progress_bar()  # of loading weights, which takes no time here
    try:
        yield has_work and (command in launch_environment.MULTI_RANK_COMMANDS or not _is_later_rank())
    finally:
        if bars:
            logging.enable_progress_bar()
        if launch_environment.world_size() == 1:
            for name in launch_environment.RANK_VARIABLES:
                os.environ.pop(name, None)
            os.environ.update(
                {name: value for name, value in environment.items() if name in launch_environment.RANK_VARIABLES}
            )


def _is_later_rank() -> bool:
    """Return whether this process has joined a job as another rank than the first."""
    if "torch" not in sys.modules:
        return False
    import torch.distributed

    return torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
