"""The terms of losses.match in their plain form, one sequence, document and head after another.

They keep whole matrices of scores, use the hidden states that transformers returns, and differentiate by autograd.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

PROJECTIONS = {
    "query": ("query", "q_lin", "query_proj", "q"),
    "key": ("key", "k_lin", "key_proj", "k"),
    "value": ("value", "v_lin", "value_proj", "v"),
}


def inner_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, list[Tensor]]:
    """Return what lies inside a model, by quantity and layer: hidden, embeddings, query, key, value; each [B, L, H].

    Args:
        model: A Hugging Face masked-LM model of BERT's, DistilBERT's, DeBERTa's or MPNet's kind.
        input_ids: [B, L] int64.
        attention_mask: [B, L] or [B, 1, L, L] bool, or None.
    """
    states: dict[str, list[Tensor]] = {name: [] for name in PROJECTIONS}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, kept=states[quantity]: kept.append(output))
        for quantity, endings in PROJECTIONS.items()
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in endings
    ]
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    # DeBERTa projects its relative positions with the same modules, as one row
    states = {name: [x for x in found if x.shape[:2] == input_ids.shape] for name, found in states.items()}
    return states | {"embeddings": [outputs.hidden_states[0]], "hidden": list(outputs.hidden_states[1:])}


def relation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, real: Tensor, documents: Tensor | None
) -> Tensor:
    """Return the mean over heads and real tokens of KL(teacher's relation ‖ student's), in nats.

    Args:
        student: (a, b), each [B, L, H_S]; twice the same tensor for a self-relation.
        teacher: (a, b), each [B, L, H_T].
        heads: The number of relation heads.
        real: [B, L] bool.
        documents: [B, L] int, or None where a sequence is one document.
    """
    total = 0.0
    for tokens in _documents(real, documents):
        for s, t in zip(_scores(student, tokens, heads), _scores(teacher, tokens, heads), strict=True):
            log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
            total = total + (log_p.exp() * (log_p - log_q)).sum()
    return total / (heads * real.sum())


def attention_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, real: Tensor, documents: Tensor | None
) -> Tensor:
    """Return the squared error of attention scores: the mean over real tokens, those that each sees, and heads.

    The arguments are those of `relation_loss`, with queries and keys as a and b.
    """
    total = 0.0
    for tokens in _documents(real, documents):
        for s, t in zip(_scores(student, tokens, heads), _scores(teacher, tokens, heads), strict=True):
            total = total + (t - s).square().mean(1).sum()
    return total / (heads * real.sum())


def hidden_loss(name: str, student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Return the mean over real tokens of 1 − cosine, or of the mean squared difference, of [B, L, H]."""
    student, teacher = student[real], teacher[real]
    if name == "cosine":
        return (1 - nn.functional.cosine_similarity(student, teacher, dim=-1)).mean()
    return (student - teacher).square().mean()


def _documents(real: Tensor, documents: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Yield (sequence, indices of the real tokens) for each document of each sequence."""
    for row in range(len(real)):
        tokens = real[row].nonzero().squeeze(1)
        numbers = torch.zeros_like(tokens) if documents is None else documents[row, tokens]
        for number in numbers.unique():
            yield row, tokens[numbers == number]


def _scores(vectors: tuple[Tensor, Tensor], tokens: tuple[int, Tensor], heads: int) -> Iterator[Tensor]:
    """Yield the scores a·b / √d [n, n] of one document's tokens, head by head."""
    row, indices = tokens
    a, b = (x[row, indices].chunk(heads, dim=-1) for x in vectors)
    for a_head, b_head in zip(a, b, strict=True):
        yield a_head @ b_head.T / a_head.shape[-1] ** 0.5
