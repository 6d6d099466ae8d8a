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
from ds_distill.models.precision import choose_cpu_dtype
from ds_distill.models.student import count_parameters
from ds_distill.recipe import Recipe
from ds_distill.reporting.heldout import share_kept
from ds_distill.training.evaluation import figures_of, sum_moments
from ds_distill.utils.console import progress

WORD_COUNTS, LEAD = "word counts", "lead"
MAX_SEQUENCES = 2048
PROMPTS = (
    "The default [MASK] is None.",
    "Return True if the [MASK] exists.",
    "This method raises an [MASK] if the index is out of bounds.",
)
CHOICES = 3  # answers per prompt


def measure(
    models: dict[str, PreTrainedModel],
    tokens: Path,
    heldout: Path,
    recipe: Recipe,
    pair: tuple[str, str] | None = None,
) -> tuple[list[dict], dict]:
    """Return (rows, lead): what word counts and each model make of [MASK], and one model's lead over another.

    Args:
        models: The models by name, the teacher first.
        tokens: The folder of prepared training tokens.
        heldout: The folder of prepared held-out tokens.
        recipe: The recipe, for its masks.
        pair: The names of two models, the one that should lead first; None where there is nothing to lead over.

    Returns:
        A row for word counts and for each model: parameters, latency, held-out figures, and `kept`, the share of the
        teacher's accuracy. The lead has the names of the figures too: nats per guess by which the first of the pair
        is below the second, and the share of guesses by which it is above. Its standard errors are those of a
        paired comparison, because both predict the same tokens. It is empty without a pair.
    """
    training, part = TokenDataset.open(tokens, "train"), open_heldout(heldout)
    masker = make_masker(training, recipe)
    size = cast(int, recipe.training.micro_batch_size)
    times = latencies(models)
    dtype = choose_cpu_dtype()  # bf16 halves the time where the processor has it, and moves figures by 0.0004 at most
    objectives = {
        name: Objective(copy.deepcopy(model), recipe.losses.without_teacher(), 1).to(dtype).eval()
        for name, model in models.items()
    }
    moments: dict[str, torch.Tensor] = {}
    batches = heldout_batches(part, masker, size, MAX_SEQUENCES)
    with progress(-(-min(MAX_SEQUENCES, len(part)) // size), "comparison", "batch") as bar, torch.no_grad():
        for batch in batches:
            results = {WORD_COUNTS: guess_by_counts(batch.labels, training.token_counts)}
            for name, objective in objectives.items():
                results[name] = objective(batch.input_ids, batch.attention_mask, batch.labels, mode="evaluate")[1]
            if pair:
                results[LEAD] = (results[pair[0]] - results[pair[1]]) * torch.tensor([-1, 1])  # a lower loss is better
            for name, values in results.items():
                moments[name] = moments.get(name, 0) + sum_moments(batch, values)
            bar.update()
    lead = figures_of(moments.pop(LEAD)) if pair else {}
    rows: list[dict] = [
        {
            "model": name,
            "parameters": count_parameters(models[name]) if name in models else None,
            "latency_ms": times.get(name),
            "latency_tokens": latency_tokens(models) if name in times else None,
        }
        | figures_of(sums)
        for name, sums in moments.items()
    ]
    teacher = rows[1]["mask_accuracy"]
    for row in rows:
        row["kept"] = share_kept(row["mask_accuracy"], teacher)
    return rows, lead


def guess_by_counts(labels: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    """Return float64 [selected positions, 2]: loss and whether right, where each token is expected as often as it is.

    Args:
        labels: [B, L] int64, below 0 where a position is not selected.
        counts: [V] occurrences of each token in the training text; one more of each is assumed.
    """
    selected = labels[labels >= 0]
    frequencies = torch.from_numpy((counts + 1) / (counts + 1).sum())
    return torch.stack([-frequencies.log()[selected], (selected == frequencies.argmax()).double()], dim=1)


def latency_tokens(models: dict[str, PreTrainedModel]) -> int:
    """Return the tokens of the sequence whose forward is timed: 128, or as many as all models read."""
    return min(128, *(model.config.max_position_embeddings for model in models.values()))


def latencies(models: dict[str, PreTrainedModel], rounds: int = 18, warm_up: int = 3) -> dict[str, float]:
    """Return each model's median milliseconds of one forward of 1 × `latency_tokens` tokens in fp32 on the CPU.

    The models take turns, so that what else the machine does slows all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    tokens = latency_tokens(models)
    with torch.inference_mode():
        for _ in range(rounds):
            for name, model in models.items():
                ids = torch.full((1, tokens), 5)
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
