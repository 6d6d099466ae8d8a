"""The standard deviations of a teacher's hidden states, which a term of the loss may divide by.

A few dimensions of a trained encoder are many times larger than the others, and would decide a squared error alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ds_distill.data.batch import Batch
from ds_distill.data.loader import BatchLoader
from ds_distill.losses.objective import Objective
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.intermediates import Site
from ds_distill.models.teacher import Teacher
from ds_distill.training.evaluation import without_compilation
from ds_distill.utils.console import progress

TOKENS = 16_384  # enough for deviations within a few percent
BATCH_TOKENS = 2_048  # that the teacher reads at a time, whatever the run's micro-batch is
# A deviation is at least this share of the mean over dimensions, so that one that hardly varies does not decide.
SMALLEST = 0.01


def divide_by_deviations(
    objective: Objective,
    teacher: Teacher | Ensemble,
    loader: BatchLoader,
    known: dict[str, list[float]],
    device: torch.device,
) -> None:
    """Collective: give an objective the deviations that it divides by.

    Those that are not known are measured on the first batches of the run. Every rank reads the same sequences in the
    same batches, so the figures depend neither on the number of ranks nor on the micro-batch; the first rank's count.

    Args:
        objective: The objective.
        teacher: The teacher.
        loader: The loader of the training batches.
        known: Deviations by the name of a site, from a checkpoint; those that are measured are added.
        device: The device of the run.
    """
    missing = sorted(site for site in objective.divided_sites if _name(site) not in known)
    if missing:
        measured = measure_deviations(teacher, loader, missing, device)
        known |= {_name(site): deviation.tolist() for site, deviation in measured.items()}
    objective.divide_by(
        {site: torch.tensor(known[_name(site)], device=device) for site in sorted(objective.divided_sites)}
    )


def measure_deviations(
    teacher: Teacher | Ensemble, loader: BatchLoader, sites: Iterable[Site], device: torch.device
) -> dict[Site, Tensor]:
    """Collective: return the standard deviation of each dimension over the real tokens of the first batches.

    Args:
        teacher: The teacher.
        loader: The loader of the training batches.
        sites: Hidden states or embeddings of the teacher.
        device: The device of the run.

    Returns:
        fp32 [H] by site, the same on all ranks.
    """
    sites = tuple(sites)
    moments: dict[Site, list[Tensor]] = {site: [] for site in sites}
    # compiling for this shape of batches would not pay
    with without_compilation(), progress(None, "teacher's deviations", "batch") as bar:
        for batch in _first_batches(loader):
            batch = batch.to(device)
            states = teacher.targets(batch.input_ids, batch.attention_mask, None, sites, head=False).states
            counted = _counted(batch)
            for site in sites:
                real = (states[site].flatten(0, 1) if counted is None else states[site][counted]).double()
                ones = real.new_full((real.shape[1],), float(len(real)))
                moments[site].append(torch.stack([ones, real.sum(0), real.square().sum(0)]))
            bar.update()
    deviations = {}
    for site, parts in moments.items():
        count, total, squares = torch.stack(parts).sum(0)
        deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()
        deviation = deviation.clamp(min=SMALLEST * float(deviation.mean())).float()
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(deviation, 0)
        deviations[site] = deviation
    return deviations


def _first_batches(loader: BatchLoader) -> Iterator[Batch]:
    """Yield the first sequences of a run in batches, until they have enough tokens."""
    tokens = 0
    loader = loader.alone(max(1, BATCH_TOKENS // loader.store.manifest["sequence_length"]))
    for step in itertools.count():
        for batch in loader.micro_batches(step):
            yield batch
            counted = _counted(batch)
            tokens += batch.input_ids.numel() if counted is None else int(counted.sum())
            if tokens >= TOKENS:
                return


def _counted(batch: Batch) -> Tensor | None:
    """Return the mask [B, L] of the tokens that losses count; None for all."""
    return batch.token_mask if batch.loss_mask is None else batch.loss_mask


def _name(site: Site) -> str:
    return f"{site.quantity} {site.layer}"
