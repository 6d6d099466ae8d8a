"""The loss of task-specific distillation: hard labels and a fine-tuned teacher's soft targets.

Source: Sanh et al. 2019, section 3, after Hinton et al. 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def temperature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of T² · KL(softmax(t/T) ‖ softmax(z/T)), in nats and fp32.

    Where the teacher has -inf (padding), neither has probability.

    Args:
        student: [..., C].
        teacher: [..., C].
        temperature: T.
    """
    gone = teacher == float("-inf")
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    log_q = F.log_softmax(student.float().masked_fill(gone, float("-inf")) / temperature, dim=-1)
    # 0 · (-inf + inf) at the padding would be NaN, also in the gradient
    terms = log_p.exp() * (log_p.masked_fill(gone, 0.0) - log_q.masked_fill(gone, 0.0))
    return temperature**2 * terms.sum(-1).mean()


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean over entries of T² · KL(Bernoulli(σ(t/T)) ‖ Bernoulli(σ(z/T))), in nats and fp32.

    Args:
        student: Logits z of any shape.
        teacher: Logits t of the same shape.
        temperature: T.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (yes + no).mean()


def mean_soft_targets(
    outputs: np.ndarray,
    weights: Sequence[float],
    *,
    temperature: float,
    class_dim: int = -1,
    regression: bool = False,
    multi_label: bool = False,
) -> np.ndarray:
    """Return outputs whose soft targets are the weighted mean of those of several teachers, in fp32.

    The mean is of probabilities at temperature T, not of logits: with p̄ = Σ w_k softmax(t_k/T) it is T · log p̄, so
    that softmax(T · log p̄ / T) = p̄. Of decisions about single labels it is T · (log p̄ − log(1 − p̄)) with
    p̄ = Σ w_k σ(t_k/T), and of numbers their mean.

    Args:
        outputs: [K, …], the outputs of each of K teachers.
        weights: K numbers whose sum is 1.
        temperature: T.
        class_dim: The dimension of one teacher's outputs that a softmax is over.
        regression: Whether the outputs are numbers.
        multi_label: Whether each output is a decision of its own.
    """
    teachers = torch.from_numpy(outputs).double()
    shares = torch.tensor(weights, dtype=torch.float64).view(-1, *(1,) * (teachers.ndim - 1))
    if regression:
        mean = (shares * teachers).sum(0)
    elif multi_label:
        yes, no = ((F.logsigmoid(sign * teachers / temperature) + shares.log()).logsumexp(0) for sign in (1.0, -1.0))
        mean = temperature * (yes - no)
    else:
        dim = class_dim if class_dim < 0 else class_dim + 1
        mean = temperature * (F.log_softmax(teachers / temperature, dim) + shares.log()).logsumexp(0)
    return mean.float().numpy()


def soft_target_loss(
    outputs,
    targets: Tensor,
    *,
    temperature: float,
    regression: bool,
    multi_label: bool = False,
    labels: Tensor | None = None,
) -> Tensor:
    """Return the loss on the teacher's soft targets.

    Args:
        outputs: The student's outputs.
        targets: [B, C] for a classifier, [B, 1] for a number (the loss is then the squared error),
            [B, 2, L] for answer starts and ends (the loss is then their mean), [B, C, L] for labels
            of words.
        temperature: The temperature of the softmax, or of the sigmoid of each label.
        regression: Whether the task predicts a number.
        multi_label: Whether each of the C labels is a decision of its own.
        labels: [B, L] for labels of words: the loss is the mean over tokens whose label is not -100.
    """
    if hasattr(outputs, "start_logits"):
        student = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
        return temperature_kl(student, targets, temperature)
    if regression:
        return F.mse_loss(outputs.logits.float(), targets)
    if multi_label:
        return bernoulli_kl(outputs.logits, targets, temperature)
    if targets.ndim == 3 and labels is not None:
        labeled = labels != -100
        return temperature_kl(outputs.logits[labeled], targets.transpose(1, 2)[labeled], temperature)
    return temperature_kl(outputs.logits, targets, temperature)


def labeled_rows_loss(outputs, labels: Mapping[str, Tensor], labeled: Tensor) -> Tensor:
    """Return the loss on the labels of some rows, summed over them and divided by the number of all rows.

    Of labels of words, it is summed over the tokens of these rows and divided by the number of all tokens whose label
    is not -100. With all rows labeled it is the loss of transformers' models.

    Args:
        outputs: The student's outputs.
        labels: The arguments of a model's forward that hold labels: start_positions and end_positions [B] of answers,
            or labels: [B] class ids or numbers, [B, C] of 0.0 and 1.0 for any number of labels, or [B, L] class ids
            of tokens.
        labeled: [B] bool.
    """
    if hasattr(outputs, "start_logits"):
        parts = ((outputs.start_logits, "start_positions"), (outputs.end_logits, "end_positions"))
        rows = sum(F.cross_entropy(logits.float(), labels[name], reduction="none") for logits, name in parts) / 2
    elif labels["labels"].ndim == 2 and not labels["labels"].is_floating_point():
        tokens = F.cross_entropy(outputs.logits.float().transpose(1, 2), labels["labels"], reduction="none")
        return torch.where(labeled[:, None], tokens, 0.0).sum() / (labels["labels"] != -100).sum()
    elif labels["labels"].ndim == 2:
        rows = F.binary_cross_entropy_with_logits(outputs.logits.float(), labels["labels"], reduction="none").mean(-1)
    elif labels["labels"].is_floating_point():
        rows = (outputs.logits.float().squeeze(-1) - labels["labels"]).square()
    else:
        rows = F.cross_entropy(outputs.logits.float(), labels["labels"], reduction="none")
    return torch.where(labeled, rows, 0.0).mean()
