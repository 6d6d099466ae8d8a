"""The job of evaluating masked-LM folders on prepared tokens."""

import math
from pathlib import Path
from typing import cast

import torch

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import heldout_batches
from ds_distill.data.run_data import make_masker, open_heldout
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs.micro_batch import check_micro_batch
from ds_distill.losses.objective import Objective
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_masked_lm, new_model
from ds_distill.models.low_rank import count_with_factors
from ds_distill.preflight.models import check_fits_prepared_tokens
from ds_distill.recipe import Recipe
from ds_distill.reporting.run_text import describe_device
from ds_distill.training.device import local_device
from ds_distill.training.evaluation import evaluate
from ds_distill.utils.console import log_header, progress_over


def evaluate_folders(models: list[ModelFolder], tokens: Path, recipe: Recipe, untrained: bool) -> list[dict]:
    """Return the held-out figures of masked-LM folders on the prepared tokens, lowest loss at [MASK] first.

    Args:
        models: The models.
        tokens: The folder of prepared tokens.
        recipe: The recipe.
        untrained: Also measure the first one's architecture with random weights. Its loss is that
            of a model that has learned nothing.
    """
    check_micro_batch(recipe)
    rank, world = start_distributed()
    device = local_device(recipe.training.device)
    heldout, train_store = open_heldout(tokens), TokenDataset.open(tokens, "train")
    masker, t = make_masker(train_store, recipe), recipe.training
    document_masking = not recipe.data.attend_across_documents
    size = cast(int, t.micro_batch_size)  # "auto" has been refused
    candidates: list[tuple[str, ModelFolder, bool]] = [(folder.name, folder, False) for folder in models]
    candidates += [(f"{models[0].name}, untrained", models[0], True)] if untrained else []
    sequences = min(t.eval_max_sequences, len(heldout))
    log_header(
        {
            "models": ", ".join(name for name, _, _ in candidates),
            "device": f"{describe_device(device, world)}, fp32",
            "text": f"{sequences:,} held-out sequences of up to {heldout.manifest['sequence_length']} tokens",
        }
    )
    rows = []
    for name, folder, random_weights in candidates:
        check_fits_prepared_tokens(train_store, folder)
        network = load_masked_lm(folder)
        if random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(t.seed)
                network = new_model(network.config, head=True).eval()
        count = -(-sequences // (size * world))
        batches = heldout_batches(heldout, masker, size, t.eval_max_sequences, document_masking, rank, world)
        batches = progress_over(batches, "untrained" if random_weights else name, total=count)
        figures = evaluate(Objective(network, recipe.losses.without_teacher(), world).to(device), batches, device)
        row = {"model": name, "parameters": count_with_factors(network, folder.linear_rank)}
        rows.append(row | {f"heldout_{key}": value for key, value in figures.items()})
    return sorted(rows, key=lambda row: math.inf if row["heldout_mask_loss"] is None else row["heldout_mask_loss"])
