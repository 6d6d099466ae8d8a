"""The demo's comparison: what the models predict at [MASK], how fast they are, and what they answer."""

import copy
import statistics
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import heldout_batches
from ds_distill.data.run_data import make_masker, open_heldout
from ds_distill.losses.objective import Objective
from ds_distill.models.student import count_parameters
from ds_distill.recipe import Recipe
from ds_distill.training.evaluation import evaluate
from ds_distill.utils.console import progress

MAX_SEQUENCES = 2048
PROMPTS = (
    "The default [MASK] is None.",
    "Return True if the [MASK] exists.",
    "This method raises an [MASK] if the index is out of bounds.",
)
CHOICES = 3  # answers per prompt


def measure(models: dict[str, PreTrainedModel], tokens: Path, heldout: Path, recipe: Recipe) -> list[dict]:
    """Return a row for word counts and for each model: parameters, latency and held-out figures at [MASK].

    Args:
        models: The models by name, the teacher first; each row's `kept` is its share of the
            teacher's accuracy.
        tokens: The folder of prepared training tokens.
        heldout: The folder of prepared held-out tokens.
        recipe: The recipe, for its masks.
    """
    training, part = TokenDataset.open(tokens, "train"), open_heldout(heldout)
    masker = make_masker(training, recipe)
    size = cast(int, recipe.training.micro_batch_size)
    counts = word_counts(next(iter(models.values())), training.token_counts)
    times = latencies(models)
    rows: list[dict] = []
    batches = -(-min(MAX_SEQUENCES, len(part)) // size)
    with progress(batches * (len(models) + 1), "comparison", "batch") as bar:
        for name, model in {"word counts": counts, **models}.items():
            figures = evaluate(
                Objective(model, recipe.losses.without_teacher(), 1),
                (batch for batch in heldout_batches(part, masker, size, MAX_SEQUENCES) if bar.update() or True),
                torch.device("cpu"),
            )
            is_model = model is not counts
            rows.append(
                {
                    "model": name,
                    "parameters": count_parameters(model) if is_model else None,
                    "latency_ms": times.get(name),
                }
                | figures
            )
    teacher = rows[1]["mask_accuracy"]
    for row in rows:
        row["kept"] = row["mask_accuracy"] / teacher if teacher and row["mask_accuracy"] is not None else None
    return rows


def word_counts(model: PreTrainedModel, counts: np.ndarray) -> PreTrainedModel:
    """Return a copy of `model` that answers with the frequency of each token, whatever the sentence.

    Args:
        model: A masked language model.
        counts: [V] occurrences of each token in the training text.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all logits are then the decoder's bias
        frequencies = (counts + 1) / (counts + 1).sum()
        bias = model.get_output_embeddings().bias
        bias.copy_(torch.from_numpy(np.log(frequencies)).to(bias.dtype))
    return model


def latencies(models: dict[str, PreTrainedModel], rounds: int = 18, warm_up: int = 3) -> dict[str, float]:
    """Return each model's median milliseconds of one forward of 1 × 128 tokens in fp32 on the CPU.

    The models take turns, so that what else the machine does slows all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, model in models.items():
                ids = torch.full((1, min(128, model.config.max_position_embeddings)), 5)
                began = time.perf_counter()
                model.eval()(ids)
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(measured[warm_up:]) for name, measured in times.items()}


def fill(models: dict[str, PreTrainedModel], tokenizer, prompts: tuple[str, ...] = PROMPTS) -> list[dict]:
    """Return for each prompt the models' most likely tokens at [MASK].

    Returns:
        Rows {"prompt": prompt, model name: [(token, probability), …], …}.
    """
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        place = (ids[0] == tokenizer.mask_token_id).nonzero()[0, 0]
        row: dict = {"prompt": prompt}
        for name, model in models.items():
            with torch.inference_mode():
                probabilities = model.eval()(ids).logits[0, place].softmax(-1)
            best = probabilities.topk(CHOICES)
            row[name] = [
                (tokenizer.decode([token]).strip(), probability)
                for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        rows.append(row)
    return rows
