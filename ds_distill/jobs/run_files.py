"""The files of a training beside its checkpoints: what its model is, first; its export, curves and card, last."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.run_data import text_statistics
from ds_distill.data.token_files import open_manifest
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.distributed.process_group import broadcast_object, run_on_rank0
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.exporters.huggingface import export
from ds_distill.exporters.sentence_embedding import write_sentence_transformers_files
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loader_text import loader_code
from ds_distill.models.low_rank import get_rank
from ds_distill.recipe import Recipe
from ds_distill.reporting import provenance
from ds_distill.reporting.model_card import model_card
from ds_distill.reporting.plots import loss_plot
from ds_distill.reporting.run_panels import labels_of_stages
from ds_distill.run_folder import RunFolder
from ds_distill.run_record import write_record
from ds_distill.training.state import read_heldout_curves
from ds_distill.training.trainer import Trainer, count_steps
from ds_distill.training.weights import gather_master_weights
from ds_distill.utils.console import is_first, log
from ds_distill.utils.files import StoredSummary, copy_within, json_text, read_summary
from ds_distill.utils.resources import explain_disk_full


def keep_model(
    model: PreTrainedModel, tokens: Path, folder: RunFolder, origin: provenance.Provenance, base: ModelFolder | None
) -> None:
    """Collective: save config and tokenizer beside the checkpoints, so that `export` needs only the run's folder.

    What the model card tells is saved too. Where `base`, the model that this one is made of, has the files of
    sentence-transformers, they are saved as well.
    """
    config = model.config

    def keep() -> None:
        if not folder.has_model():
            copy_within(tokens / "tokenizer", folder.model, tokens)
            if base and origin.sentence_transformers:
                positions = get_family_by_type(config.model_type).positions(config)
                write_sentence_transformers_files(base.path, config, positions, folder.model)
            config.save_pretrained(folder.model)
        provenance.write(origin, folder.provenance)

    run_on_rank0(keep)


def describe_circumstances(store: TokenDataset, ranks: int) -> dict:
    """Return what a model card tells of a training beside the model: its text, its devices and its packages."""
    return {
        "datasets": provenance.name_datasets(source["input"] for source in store.manifest["sources"]),
        "hardware": provenance.describe_hardware(ranks),
        "versions": provenance.describe_versions(),
    }


def finished_before(folder: RunFolder, recipe: Recipe, loader: BatchLoader, heldout: dict) -> StoredSummary | None:
    """Collective: return the summary of a run that has nothing left to do, and say so; else None.

    Nothing is left where all steps are done, the model is exported, and every held-out set has been evaluated at the
    end.
    """
    steps = count_steps(recipe, loader)

    def look() -> StoredSummary | None:
        summary = read_summary(folder.path)
        if summary is None or summary.get("steps") != steps or not (folder.export / "config.json").is_file():
            return None
        try:
            curves = read_heldout_curves(folder.path)
            measured = all(curves[name][-1]["step"] == steps for name in heldout)
        except (OSError, ValueError, KeyError, IndexError):
            return None
        # the folder may have been moved since
        return StoredSummary(summary | {"export": str(folder.export), "plot": str(folder.plot)}) if measured else None

    summary = broadcast_object(look() if is_first() else None)
    if summary is not None:
        log(f"{folder.path}: finished before ({steps:,} of {steps:,} steps), nothing to do")
    return summary


def export_and_summarize(
    trainer: Trainer,
    summary: dict,
    recipe: Recipe,
    tokens: Path,
    origin: provenance.Provenance,
    *,
    teacher: dict[str, dict] | None = None,
    layer_map: list[int] | None = None,
    **facts: str,
) -> dict:
    """Collective: write export, plot, record and model card of a finished run; return its summary.

    Args:
        trainer: The trainer, which has finished.
        summary: What it has measured.
        recipe: The recipe.
        tokens: The folder of prepared tokens.
        origin: What the model card tells of the model and the training.
        teacher: The teacher's held-out figures by the name of the set.
        layer_map: The teacher layer that each student layer started from.
        facts: What else to record of the run.
    """
    weights, state, folder, title = gather_master_weights(trainer.engine), trainer.state, trainer.folder, trainer.title
    summary["parameters"] = sum(x.numel() for x in weights.values())
    summary["export"] = str(folder.export)
    summary["forward_mflops_per_token"] = forward_mflops(trainer.objective.model, trainer.loader.store)
    if is_first():
        curves = {"history": state.history, "heldout": state.heldout} | ({"teacher": teacher} if teacher else {})
        curves |= {"stages": state.stages} if state.stages else {}
        folder.curves.write_text(json_text(curves) + "\n", encoding="utf-8")
        objectives = [losses for _, losses in recipe.losses_by_share()]
        labels = labels_of_stages(objectives, layer_map, recipe.data.clean_fraction)
        loss_plot(state.history, state.heldout, folder.plot, title, labels=labels, teacher=teacher, stages=state.stages)
        if summary["tokens_per_second"] is not None or not folder.record.is_file():
            # a finished run that is started again keeps the record of its training
            precision = str(trainer.dtype).removeprefix("torch.")
            write_record(folder.path, precision=precision, layer_map=layer_map, **facts)
        summary["plot"] = str(folder.plot)
        summary |= text_statistics(tokens)
        manifest = open_manifest(tokens)
        # a command's own name, which labels its progress, says nothing of its model
        heading = {"distill": f"A student of {origin.base}", "pretrain": "A pretrained encoder"}.get(title, title)
        card = model_card(
            heading,
            summary,
            recipe.as_dict(),
            manifest["fingerprint"],
            origin,
            **describe_head(trainer.objective.model),
        )
        with explain_disk_full(folder.path):
            export(
                weights,
                trainer.objective.model.cpu(),
                load_tokenizer(tokens / "tokenizer"),
                folder.export,
                card,
                kept=folder.model,
            )
    torch.distributed.barrier()
    trainer.engine.destroy()
    return summary


def describe_head(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a model card has to know of a model's class, as arguments of `model_card`."""
    family = get_family(model)
    bare = {} if family.has_head(model) else {"head": "encoder", "pooler": family.has_pooler}
    return bare | {"loader": loader_code(model), "rank": get_rank(model.config)}


def forward_mflops(model: PreTrainedModel, store: TokenDataset) -> float:
    """Return the millions of operations per token of a model's forward on full sequences of the prepared tokens."""
    projected = float(get_family(model).has_head(model))
    return round(forward_flops_per_token(model.config, store.manifest["sequence_length"], projected) / 1e6, 6)
