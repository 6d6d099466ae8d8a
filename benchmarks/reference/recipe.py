"""The reference implementation, against which correctness and speed are measured.

It follows the paper's recipe in the way a reader would check it: full logits, the whole global
batch in one forward pass, one process, no DeepSpeed and no fused loss. It stays this simple on
purpose, because a reference that is optimized no longer shows what the optimizations bring.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reference_losses(
    student: nn.Module,
    teacher: nn.Module,
    input_ids: Tensor,
    labels: Tensor,
    attention_mask: Tensor | None = None,
    *,
    temperature: float = 2.0,
    kl_tokens: str = "all",
    masked_rows: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (kl, mlm, cosine), each a mean over its tokens, as section 2 of the paper defines them.

    Args:
        student, teacher: Hugging Face masked-LM models.
        input_ids: [B, L] int64.
        labels: [B, L] int64, −100 where not masked.
        attention_mask: [B, L] bool or None.
        temperature: The temperature of the KL.
        kl_tokens: "all" for a KL over all real tokens, "masked" for one over masked tokens only.
        masked_rows: The sequences that the first two losses look at, because the others are not masked; None for all.
    """
    with torch.no_grad():
        t = teacher(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    s = student(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    real = torch.ones_like(labels, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    masked = labels >= 0
    looked_at = torch.ones_like(labels, dtype=torch.bool)
    if masked_rows is not None:
        looked_at[[row for row in range(len(labels)) if row not in masked_rows]] = False
    rows = masked if kl_tokens == "masked" else real & looked_at
    log_q = F.log_softmax(s.logits[rows].float() / temperature, dim=-1)
    p = F.softmax(t.logits[rows].float() / temperature, dim=-1)
    kl = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
    mlm = F.cross_entropy(s.logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    hidden_s, hidden_t = s.hidden_states[-1][real].float(), t.hidden_states[-1][real].float()
    cosine = F.cosine_embedding_loss(hidden_s, hidden_t, hidden_s.new_ones(len(hidden_s)))
    return kl, mlm, cosine


def reference_relation_kl(
    student_a: Tensor, student_b: Tensor, teacher_a: Tensor, teacher_b: Tensor, token_mask: Tensor | None = None
) -> Tensor:
    """Return the sum over real tokens and heads of the KL of relations, as section 3.1 of MiniLMv2 defines them.

    Args:
        student_a, student_b: [B, R, L, d], for example queries and queries, or queries and keys.
        teacher_a, teacher_b: The same of the teacher, whose d may differ.
        token_mask: [B, L] bool or None.
    """
    s, t = _scores(student_a, student_b), _scores(teacher_a, teacher_b)
    if token_mask is None:
        return F.kl_div(F.log_softmax(s, dim=-1), F.softmax(t, dim=-1), reduction="sum")
    padding = ~token_mask[:, None, None, :]
    lowest = torch.finfo(s.dtype).min
    log_q, p = F.log_softmax(s.masked_fill(padding, lowest), -1), F.softmax(t.masked_fill(padding, lowest), -1)
    return (F.kl_div(log_q, p, reduction="none").sum(-1) * token_mask[:, None, :]).sum()


def reference_attention_score_mse(
    student_q: Tensor, student_k: Tensor, teacher_q: Tensor, teacher_k: Tensor, token_mask: Tensor | None = None
) -> Tensor:
    """Return the sum of squared differences of attention scores, as section 3.1 of TinyBERT defines them.

    The arguments are those of reference_relation_kl.
    """
    s, t = _scores(student_q, student_k), _scores(teacher_q, teacher_k)
    if token_mask is not None:
        padding = ~(token_mask[:, None, :, None] & token_mask[:, None, None, :])
        s, t = s.masked_fill(padding, 0.0), t.masked_fill(padding, 0.0)
    return F.mse_loss(s, t, reduction="sum")


def _scores(a: Tensor, b: Tensor) -> Tensor:
    return a.float() @ b.float().transpose(-1, -2) / a.shape[-1] ** 0.5


def reference_step(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple,
    *,
    weights=(5.0, 2.0, 1.0),
    max_grad_norm: float = 5.0,
    kl_tokens: str = "all",
    masked_rows: list[int] | None = None,
) -> tuple[float, float, float]:
    """Take one optimizer step on batch = (input_ids, labels, attention_mask); return the three losses before it."""
    losses = reference_losses(student, teacher, *batch, kl_tokens=kl_tokens, masked_rows=masked_rows)
    sum(w * x for w, x in zip(weights, losses, strict=True)).backward()
    if max_grad_norm:
        nn.utils.clip_grad_norm_(student.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return tuple(float(x.detach()) for x in losses)
