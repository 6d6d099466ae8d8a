"""The job that takes heads, feed-forward columns and whole sublayers out of a model, to make it faster in a runtime."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ds_distill.compression.calibration import collect_moments
from ds_distill.compression.card import pruned_card
from ds_distill.compression.choose import Option, choose_options
from ds_distill.compression.latency_table import FLOPS, LatencyTable, measure_encoders, measure_table
from ds_distill.compression.prune_model import METHODS, plan_removals, prune_model
from ds_distill.compression.prune_width import check_width, prune_width
from ds_distill.compression.surgeon import Removal
from ds_distill.config.pruning import Pruning
from ds_distill.data.batch import Batch
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import heldout_batches
from ds_distill.data.masking import Masker
from ds_distill.data.run_data import make_masker, open_heldout, text_fingerprint
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.exporters.sentence_embedding import write_sentence_transformers_files
from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.layer_shapes import (
    LayerShape,
    check_prunable,
    full_shape,
    is_pruned,
    layer_shapes,
    set_layer_shapes,
)
from ds_distill.models.loader_text import loader_code
from ds_distill.models.loading import load_encoder
from ds_distill.models.saving import save_model_folder
from ds_distill.models.sentence_modules import is_embedder
from ds_distill.models.student import count_parameters
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.preflight.models import check_fits_prepared_tokens, report_lost_head
from ds_distill.recipe import Recipe
from ds_distill.reporting import provenance
from ds_distill.run_folder import RunFolder, locked_run_folder_alone, read_finished
from ds_distill.run_record import write_record
from ds_distill.training.evaluation import evaluate_alone
from ds_distill.utils.console import log, log_header, progress_over, spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_summary
from ds_distill.utils.resources import explain_disk_full

BATCH = 16
DIFFERENCE = 0.1  # share by which a measured speed may be below that of the table, before it is reported
# the settings of a recipe that decide what a model is shown of prepared tokens
MASKING = (
    "data.attend_across_documents",
    "data.mlm_probability",
    "data.mlm_smoothing",
    "data.whole_word_masking",
    "training.seed",
)


def prune(
    model: str,
    output: Path,
    pruning: Pruning,
    *,
    tokens: Path,
    recipe: Recipe,
    latency_table: Path,
    compare: bool = False,
) -> dict:
    """Write output/export, a smaller model that is `pruning.target` times as fast, and return the summary.

    Args:
        model: The folder, or name on the Hub, of a masked-LM model or an encoder that `check_cut` has passed.
        output: The folder to write.
        pruning: How to prune.
        tokens: A folder of prepared tokens, of which some are read to find what the model needs, and some are held out.
        recipe: How they were prepared, and how they are masked.
        latency_table: A file with costs that were measured before, or to write them to.
        compare: Whether to measure the same shapes cut by other methods too.
    """
    folder = find_model_folder(model, "--model")
    whole = load_encoder(folder)
    identity = {
        "model": weights_fingerprint(whole)[:16],
        "text": text_fingerprint([], tokens),
        **{key: value for key, value in recipe.identity().items() if key in MASKING},
        **pruning.identity(),
        "compare": compare,
    }
    export = RunFolder(output).export
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := read_finished(output, export / "config.json", export=export, tokens=tokens):
            return finished
        store = TokenDataset.open(tokens, "train")
        check_fits_prepared_tokens(store, folder)
        heldout = open_heldout(tokens) if get_family(whole).has_head(whole) else None
        report_lost_head(folder, whole)
        log_header(
            {
                "model": f"{folder.title}, {count_parameters(whole) / 1e6:.1f} M parameters",
                "target": _describe_target(pruning),
                "calibration": f"{min(pruning.sequences, len(store)):,} sequences",
                "output": str(output),
            }
        )
        if folder.linear_rank is not None:
            log(
                f"{folder.title}: its linear layers, which were trained in factors of rank {folder.linear_rank}, are "
                "pruned as whole ones"
            )
        batches = list(_batches(store, make_masker(store, recipe), recipe, pruning.sequences))
        moments = collect_moments(whole, progress_over(batches, "calibration"))
        given = whole
        if pruning.hidden_size:
            whole = prune_width(copy.deepcopy(given), pruning.hidden_size, batches, moments)
            moments = collect_moments(whole, progress_over(batches, "calibration, narrower"))
        table = _open_table(latency_table, whole.config, pruning)
        removals = plan_removals(whole, moments)
        shapes = choose_shapes(whole.config, table, removals, pruning)
        figures = _figures(whole, table, shapes)
        if shapes == layer_shapes(whole.config) and not pruning.width_alone:
            log(
                f"--target {pruning.target:g}x: nothing is taken out, since the layers, which were pruned before, are "
                f"{figures['speedup']:.2f} times as fast as whole ones"
            )
        if pruning.hidden_size:
            del figures["cost_before"]  # it is that of the narrower model, which is only on the way
        methods = METHODS if compare else METHODS[:1]
        cuts: dict[str, PreTrainedModel] = {}
        for method in methods:
            cuts[method] = copy.deepcopy(whole)
            prune_model(cuts[method], shapes, method, moments, removals, uniform=pruning.uniform)
        pruned = cuts["saliency"]
        figures |= {"parameters": count_parameters(pruned), "parameters_before": count_parameters(given)}
        figures |= _flops(given.config, pruned.config, pruning.length)
        if pruning.runtime != FLOPS and shapes != layer_shapes(whole.config):
            figures |= _measure(whole.config, pruned.config, pruning, figures["speedup"])
            if pruning.hidden_size or is_pruned(given.config):
                del figures["measured_ms_before"]  # it is that of whole layers, which the given model does not have
        if heldout:
            figures |= _heldout_losses({"before": given, **cuts}, heldout, make_masker(store, recipe), recipe)
        with explain_disk_full(output), spinner("writing the model"):
            _write(pruned, folder, folder.tokenizer, export, figures, pruning)
        write_record(output)
        summary = figures | {"export": str(export), "output": str(output), "tokens": str(tokens)}
        write_summary(summary, output)  # with which a job of several cuts finds this one done
        return summary


def _describe_target(pruning: Pruning) -> str:
    if pruning.width_alone:
        return f"a width of {pruning.hidden_size}"
    target = f"{pruning.target:g}x in {pruning.runtime} on {pruning.batch} x {pruning.length} tokens"
    return target + (f", after a cut to a width of {pruning.hidden_size}" if pruning.hidden_size else "")


def check_cut(config: PretrainedConfig, pruning: Pruning) -> None:
    """Raise UserError where a model of this config cannot be cut like this, whatever its weights."""
    family = get_family_by_type(config.model_type)
    check_prunable(family)
    positions = family.positions(config)
    if pruning.length > positions and not pruning.width_alone:
        raise UserError(
            f"--shape {pruning.batch}x{pruning.length}: the model has {positions} positions; give {positions} tokens "
            "or fewer"
        )
    if pruning.hidden_size:
        check_width(config, pruning.hidden_size)
    if pruning.uniform and is_pruned(config):
        raise UserError(
            "--uniform: the model's layers were pruned before, and have heads and columns of their own number; leave "
            "it out, or give a model of whole layers"
        )


def _batches(store: TokenDataset, masker: Masker, recipe: Recipe, sequences: int) -> Iterator[Batch]:
    """Return batches of the sequences of a text that are spread evenly over it, with the contexts of the recipe."""
    return heldout_batches(store, masker, BATCH, sequences, not recipe.data.attend_across_documents)


def _open_table(file: Path, config: PretrainedConfig, pruning: Pruning) -> LatencyTable:
    """Return the costs of a file, or measure them and write the file."""
    if file.exists():
        return LatencyTable.load(file, config, pruning.runtime, pruning.batch, pruning.length)
    table = measure_table(config, pruning.runtime, pruning.batch, pruning.length)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.save(file)
    log(f"latency table: {file}")
    return table


def choose_shapes(
    config: PretrainedConfig, table: LatencyTable, removals: dict[tuple[int, str], Removal], pruning: Pruning
) -> list[LayerShape]:
    """Return the shapes of the least error with which a model is as fast as asked.

    Args:
        config: The model's config.
        table: The costs of its parts.
        removals: Those of `plan_removals`.
        pruning: How to prune.

    Raises:
        UserError: No shapes are as fast.
    """
    now, full = layer_shapes(config), full_shape(config)
    if pruning.width_alone:
        return now
    unpruned = table.of_shapes([full] * len(now))
    budget = unpruned / pruning.target
    if pruning.uniform:
        widths = sorted((width for width in table.feed_forward if width), reverse=True)
        for width in widths:
            if table.of_shapes(shapes := [LayerShape(full.heads, width)] * len(now)) <= budget:
                return shapes
        fastest = unpruned / table.of_shapes([LayerShape(full.heads, widths[-1])] * len(now))
        raise _unreachable(pruning, fastest, "with all heads and equal feed-forwards", "or leave --uniform out")
    parts = []
    for number, shape in enumerate(now):
        for part, costs in (("heads", dict(enumerate(table.heads))), ("feed_forward", table.feed_forward)):
            size = getattr(shape, part)
            errors = removals[number, part].errors if (number, part) in removals else [0.0]
            parts.append([Option(left, cost, errors[size - left]) for left, cost in costs.items() if left <= size])
    sizes = choose_options(parts, budget - table.base[len(now)])
    if sizes is not None and not any(sizes):
        raise UserError(
            f"--target {pruning.target:g}x: would leave no heads and no columns in any layer; give less, or distill "
            "into fewer layers"
        )
    if sizes is None:
        fastest = unpruned / table.of_shapes([LayerShape(0, 0)] * len(now))
        raise _unreachable(pruning, fastest, "without any heads and columns", "or distill into fewer layers")
    return [LayerShape(*sizes[place : place + 2]) for place in range(0, len(sizes), 2)]


def _unreachable(pruning: Pruning, fastest: float, what: str, remedy: str) -> UserError:
    return UserError(
        f"--target {pruning.target:g}x: {what} the encoder is at most {fastest:.2f} times as fast in "
        f"{pruning.runtime} on {pruning.batch} x {pruning.length} tokens; give less, {remedy}"
    )


def _figures(model: PreTrainedModel, table: LatencyTable, shapes: list[LayerShape]) -> dict:
    before, after = (table.of_shapes(each) for each in (layer_shapes(model.config), shapes))
    unpruned = table.of_shapes([full_shape(model.config)] * len(shapes))
    return {
        "layers": [shape._asdict() for shape in shapes],
        "runtime": table.runtime,
        "unit": table.unit,
        "cost_before": before,
        "cost": after,
        "speedup": unpruned / after,
    }


def _measure(whole: PretrainedConfig, pruned: PretrainedConfig, pruning: Pruning, by_table: float) -> dict[str, float]:
    """Return the measured times of the encoders with whole layers and as pruned; log where the table says otherwise."""
    full = copy.deepcopy(whole)
    set_layer_shapes(full, [full_shape(full)] * len(layer_shapes(full)))
    configs = {"before": full, "after": pruned}
    times = measure_encoders(configs, pruning.runtime, pruning.batch, pruning.length)
    speedup = times["before"] / times["after"]
    if speedup < (1 - DIFFERENCE) * by_table:
        log(
            f"the pruned encoder was measured to be {speedup:.2f} times as fast, where the latency table says "
            f"{by_table:.2f}: other work has disturbed one of the two; on an idle machine, cut again with another "
            "--output, and without --latency_table"
        )
    return {"measured_ms_before": times["before"], "measured_ms": times["after"], "measured_speedup": speedup}


def _flops(before: PretrainedConfig, after: PretrainedConfig, length: int) -> dict[str, float]:
    """Return the millions of operations per token of the encoders, without heads."""
    return {
        "mflops_per_token_before": round(forward_flops_per_token(before, length, 0.0) / 1e6, 6),
        "mflops_per_token": round(forward_flops_per_token(after, length, 0.0) / 1e6, 6),
    }


def _heldout_losses(
    models: dict[str, PreTrainedModel], heldout: TokenDataset, masker: Masker, recipe: Recipe
) -> dict[str, Any]:
    """Return the held-out masked-LM loss of models at the positions that show [MASK], in nats, and its error."""
    figures = {}
    for name, model in models.items():
        batches = _batches(heldout, masker, recipe, recipe.training.eval_max_sequences)
        # an objective changes the decoder's class
        objective = Objective(copy.deepcopy(model), recipe.losses.without_teacher(), 1)
        with spinner(f"evaluating: {name}"):
            loss = evaluate_alone(objective, batches, torch.device("cpu"))
        figures[f"loss_{name}"], figures[f"loss_se_{name}"] = loss["mask_loss"], loss["mask_loss_se"]
    return figures


def _write(
    model: PreTrainedModel,
    folder: ModelFolder,
    tokenizer: PreTrainedTokenizerFast,
    export: Path,
    figures: dict,
    pruning: Pruning,
) -> None:
    family = get_family(model)
    save_model_folder(model, tokenizer, export)
    if is_embedder(folder.path):
        write_sentence_transformers_files(folder.path, model.config, tokenizer.model_max_length, export)
    card = pruned_card(
        figures,
        pruning,
        provenance.from_model(folder.path),
        head=family.has_head(model),
        pooler=family.has_pooler,
        loader=loader_code(model),
    )
    (export / "README.md").write_text(card, encoding="utf-8")
