"""The job of training a new encoder, or one that is there, with masked-LM only."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.run_data import open_run_data
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs.micro_batch import check_micro_batch, with_resolved_micro_batch
from ds_distill.jobs.run_files import describe_circumstances, export_and_summarize, finished_before, keep_model
from ds_distill.losses.objective import Objective
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.low_rank import restore_factors
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.preflight.models import check_fits_prepared_tokens, check_sizes
from ds_distill.recipe import Recipe
from ds_distill.reporting import provenance
from ds_distill.run_folder import RunFolder, locked_run_folder
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.training.trainer import Trainer, explain_training_memory
from ds_distill.utils.errors import UserError


def pretrain(
    recipe: Recipe,
    model: dict | ModelFolder,
    tokens: Path,
    output: Path,
    *,
    title: str = "pretrain",
    heldout: dict[str, Path] | None = None,
) -> dict:
    """Collective: train with masked-LM only.

    training.encoder_learning_rate applies to all but the head; 0 leaves the encoder as it is.

    Args:
        recipe: The recipe.
        model: The sizes of a BERT with random weights (BertConfig's), or the folder of an encoder
            to continue from. An encoder without a masked-LM head is given one.
        tokens: The folder of prepared tokens.
        output: The run's folder.
        title: The title of plot and model card.
        heldout: Folders of further held-out texts, by name, from heldout_sets.
    """
    recipe.check()
    check_micro_batch(recipe)
    if recipe.stages:
        raise UserError("stages: pretrain has masked LM alone, in one stage; leave them out")
    losses = recipe.trained_losses().without_teacher()
    if not losses.mlm:
        raise UserError(
            f"losses.mlm = {recipe.losses.mlm:g}, data.clean_fraction = {recipe.data.clean_fraction:g}: pretrain "
            "trains with masked LM alone, for which the first must be above 0 and the second below 1"
        )
    folder = RunFolder(output)
    rank, world = start_distributed()
    device = local_device(recipe.training.device)
    dtype = resolve_dtype(recipe.training, device)
    recipe = with_resolved_micro_batch(recipe, (), world)
    store, loader, held = open_run_data(tokens, recipe, rank, world, heldout or {})
    t = recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        if isinstance(model, ModelFolder):
            check_fits_prepared_tokens(store, model)
            encoder = load_masked_lm(model, new_head=True, dropout=t.dropout).train()
            start: dict = {"from": weights_fingerprint(encoder)[:16]}
            encoder = restore_factors(encoder, model.linear_rank)
        else:
            config = BertConfig(
                vocab_size=store.manifest["vocab_size"],
                hidden_dropout_prob=t.dropout,
                attention_probs_dropout_prob=t.dropout,
                pad_token_id=store.manifest["pad_id"],
                **model,
            )
            encoder, start = BertForMaskedLM(config), {"model": model}
            check_sizes(store, config, "the model")
    with locked_run_folder(
        output, recipe.identity() | {"data": store.manifest["fingerprint"]} | start, t.resume, can_grow=True
    ):
        if finished := finished_before(folder, recipe, loader, held):
            return finished
        circumstances, base = describe_circumstances(store, world), model if isinstance(model, ModelFolder) else None
        origin = provenance.from_model(base.path, **circumstances) if base else provenance.Provenance(**circumstances)
        keep_model(encoder, tokens, folder, origin, base)
        objective = Objective(encoder, losses, world)
        if t.encoder_learning_rate == 0:
            objective.family.get_encoder(encoder).requires_grad_(False)
        with explain_training_memory(t, encoder.config):
            trainer = Trainer(objective, None, loader, held, recipe, folder, device, dtype, title)
            summary = trainer.fit()
        return export_and_summarize(trainer, summary, recipe, tokens, origin)
