"""The second distillation's loss (Sanh et al. 2019, section 3, after Hinton et al. 2015): hard labels and a fine-tuned teacher's soft targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def temperature_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over rows of T² · KL(softmax(t/T) ‖ softmax(z/T)), in nats and fp32.

    student, teacher: [..., C]; where the teacher has -inf (padding), neither has probability.
    """
    gone = teacher == float("-inf")
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    log_q = F.log_softmax(student.float().masked_fill(gone, float("-inf")) / temperature, dim=-1)
    # 0 · (-inf + inf) at the padding would be nan, in the gradient too
    terms = log_p.exp() * (log_p.masked_fill(gone, 0.0) - log_q.masked_fill(gone, 0.0))
    return temperature**2 * terms.sum(-1).mean()


def soft_target_loss(outputs, targets: Tensor, *, temperature: float, regression: bool) -> Tensor:
    """The soft part. targets: [B, C] of a classifier, [B, 1] of a number (squared error then), [B, 2, L] of answer starts and ends (their mean)."""
    if hasattr(outputs, "start_logits"):
        student = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
        return temperature_kl(student, targets, temperature)
    if regression:
        return F.mse_loss(outputs.logits.float(), targets)
    return temperature_kl(outputs.logits, targets, temperature)


def hidden_cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens of 1 − cos(h_s, h_t). student, teacher: [B, L, H]; mask: [B, L], 1 for real tokens."""
    distance = 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (distance * mask).sum() / mask.sum()
