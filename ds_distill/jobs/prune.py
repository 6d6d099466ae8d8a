"""The job that takes heads, feed-forward columns and whole sublayers out of a model, to make it faster in a runtime."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ds_distill.compression.calibration import collect_moments
from ds_distill.compression.card import pruned_card
from ds_distill.compression.choose import Option, choose_options
from ds_distill.compression.latency_table import LatencyTable, measure_table
from ds_distill.compression.prune_model import METHODS, plan_removals, prune_model
from ds_distill.compression.prune_width import prune_width
from ds_distill.compression.surgeon import Removal
from ds_distill.config.pruning import Pruning
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.loader import heldout_batches
from ds_distill.data.run_data import is_prepared, make_masker, open_heldout, prepare_tokens
from ds_distill.data.sources import split_inputs
from ds_distill.data.token_files import open_manifest
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.layer_shapes import LayerShape, check_prunable, full_shape, layer_shapes
from ds_distill.models.loader_text import loader_code
from ds_distill.models.loading import load_encoder
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student import count_parameters
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.preflight.models import check_fits_prepared_tokens
from ds_distill.recipe import Recipe
from ds_distill.reporting import provenance
from ds_distill.run_folder import RunFolder, locked_run_folder_alone
from ds_distill.run_record import write_record
from ds_distill.training.evaluation import evaluate_alone
from ds_distill.utils.console import log, log_header, progress_over, spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_summary, write_summary
from ds_distill.utils.resources import explain_disk_full

BATCH = 16
TABLE = "latency.json"  # in the output folder


def prune(
    model: str,
    output: Path,
    pruning: Pruning,
    *,
    corpus: Sequence[str] = (),
    tokens: str | None = None,
    latency_table: str | None = None,
    compare: bool = False,
    recipe: Recipe | None = None,
) -> dict:
    """Write output/export, a smaller model that is `pruning.target` times as fast, and return the summary.

    Args:
        model: The folder, or name on the Hub, of a masked-LM model or an encoder, with its tokenizer.
        output: The folder to write.
        pruning: How to prune.
        corpus: Text, of which some is read to find what the model needs, and some is held out.
        tokens: A folder of prepared tokens instead.
        latency_table: A file with times that were measured before, or to write them to.
        compare: Whether to measure the same shapes cut by other methods too.
        recipe: How the text is prepared and masked; with prepared tokens, their settings. By default as usual, in
            sequences that the model can read.
    """
    folder = find_model_folder(model, "--model")
    check_prunable(get_family_by_type(folder.config.model_type))
    whole = load_encoder(folder)
    text = open_manifest(tokens)["fingerprint"] if tokens else content_fingerprint(split_inputs(list(corpus)))
    identity = {"model": weights_fingerprint(whole)[:16], "text": text[:16], **pruning.identity(), "compare": compare}
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := read_summary(output):
            return finished
        recipe = recipe or _usual_recipe(folder)
        place = Path(tokens or RunFolder(output).tokens)
        if not tokens and not is_prepared(place, list(corpus), folder.tokenizer, recipe):
            prepare_tokens(list(corpus), folder.tokenizer, place, recipe)
        store = TokenDataset.open(place, "train")
        check_fits_prepared_tokens(store, folder)
        log_header(
            {
                "model": f"{folder.title}, {count_parameters(whole) / 1e6:.1f} M parameters",
                "target": f"{pruning.target:g}x in {pruning.runtime} on {pruning.batch} x {pruning.length} tokens"
                + (f", after a cut to a width of {pruning.hidden_size}" if pruning.hidden_size else ""),
                "calibration": f"{min(pruning.sequences, len(store)):,} sequences",
                "output": str(output),
            }
        )
        batches = list(heldout_batches(store, make_masker(store, recipe), BATCH, pruning.sequences))
        moments = collect_moments(whole, progress_over(batches, "calibration"))
        given = whole
        if pruning.hidden_size:
            whole = prune_width(copy.deepcopy(given), pruning.hidden_size, batches, moments)
            moments = collect_moments(whole, progress_over(batches, "calibration, narrower"))
        table = _open_table(latency_table, output / TABLE, whole.config, pruning)
        removals = plan_removals(whole, moments)
        shapes = choose_shapes(whole.config, table, removals, pruning)
        figures = _figures(whole, table, shapes)
        if pruning.hidden_size:
            del figures["time_before"]  # it is that of the narrower model, which is only on the way
        methods = METHODS if compare else METHODS[:1]
        cuts: dict[str, PreTrainedModel] = {}
        for method in methods:
            cuts[method] = copy.deepcopy(whole)
            prune_model(cuts[method], shapes, method, moments, removals)
        pruned = cuts["saliency"]
        figures |= {"parameters": count_parameters(pruned), "parameters_before": count_parameters(given)}
        figures |= _flops(given.config, pruned.config, pruning.length)
        if get_family(given).has_head(given):
            figures |= _nats({"before": given, **cuts}, store, place, recipe)
        export = Path(RunFolder(output).export)
        with explain_disk_full(output), spinner("writing the model"):
            _write(pruned, folder, folder.tokenizer, export, figures, pruning)
        write_record(output)
        summary = figures | {"export": str(export), "output": str(output), "tokens": str(place)}
        write_summary(summary, output)  # with which a job of several cuts finds this one done
        return summary


def _usual_recipe(folder: ModelFolder) -> Recipe:
    recipe = Recipe()
    positions = get_family_by_type(folder.config.model_type).positions(folder.config)
    recipe.data.sequence_length = min(recipe.data.sequence_length, positions)
    return recipe


def _open_table(given: str | None, own: Path, config: PretrainedConfig, pruning: Pruning) -> LatencyTable:
    """Return the times of a file, or measure them and write the file."""
    file = Path(given) if given else own
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
        table: The times of its parts.
        removals: Those of `plan_removals`.
        pruning: How to prune.

    Raises:
        UserError: No shapes are as fast.
    """
    now, full = layer_shapes(config), full_shape(config)
    if pruning.target == 1:  # the width alone is cut
        return now
    unpruned = table.of_shapes([full] * len(now))
    limit = unpruned / pruning.target
    if pruning.uniform:
        widths = sorted((width for width in table.feed_forward if width), reverse=True)
        for width in widths:
            if table.of_shapes(shapes := [LayerShape(full.heads, width)] * len(now)) <= limit:
                return shapes
        fastest = unpruned / table.of_shapes([LayerShape(full.heads, widths[-1])] * len(now))
        raise _unreachable(pruning, fastest, "with all heads and equal feed-forwards", "or leave --uniform out")
    parts = []
    for number, shape in enumerate(now):
        for part, times in (("heads", dict(enumerate(table.heads))), ("feed_forward", table.feed_forward)):
            size = getattr(shape, part)
            errors = removals[number, part].errors if (number, part) in removals else [0.0]
            parts.append([Option(left, time, errors[size - left]) for left, time in times.items() if left <= size])
    sizes = choose_options(parts, limit - table.base[len(now)])
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
        "time_before": before,
        "time": after,
        "speedup": unpruned / after,
    }


def _flops(before: PretrainedConfig, after: PretrainedConfig, length: int) -> dict[str, float]:
    """Return the millions of operations per token of the encoders, without heads."""
    return {
        "mflops_per_token_before": round(forward_flops_per_token(before, length, 0.0) / 1e6, 6),
        "mflops_per_token": round(forward_flops_per_token(after, length, 0.0) / 1e6, 6),
    }


def _nats(models: dict[str, PreTrainedModel], store: TokenDataset, tokens: Path, recipe: Recipe) -> dict[str, Any]:
    """Return the held-out masked-LM loss of models at the positions that show [MASK], right after the cut."""
    heldout, masker, figures = open_heldout(tokens), make_masker(store, recipe), {}
    for name, model in models.items():
        batches = heldout_batches(heldout, masker, BATCH, recipe.training.eval_max_sequences)
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
    card = pruned_card(
        figures,
        pruning,
        provenance.from_model(folder.path),
        head=family.has_head(model),
        pooler=family.has_pooler,
        loader=loader_code(model),
    )
    (export / "README.md").write_text(card, encoding="utf-8")
