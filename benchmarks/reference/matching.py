"""The terms of losses.match in their plain form, one sequence, document and head after another.

They keep whole matrices of scores, use the hidden states that transformers returns, and differentiate by autograd.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

PROJECTIONS = {
    "query": ("query", "q_lin", "query_proj", "q"),
    "key": ("key", "k_lin", "key_proj", "k"),
    "value": ("value", "v_lin", "value_proj", "v"),
}


def inner_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, list[Tensor]]:
    """Return what lies inside a model, by quantity and layer: hidden, embeddings, query, key, value; each [B, L, H].

    Args:
        model: A Hugging Face masked-LM model of BERT's, DistilBERT's, DeBERTa's, MPNet's or ModernBERT's kind. Of the
            last, queries and keys are turned by their positions, and dimensions that turn together lie side by side.
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
    fused: list[tuple[Any, Tensor]] = []
    layers: list[Any] = [module for module in model.modules() if isinstance(module, ModernBertEncoderLayer)]
    for layer in layers:
        hooks.append(
            layer.attn.Wqkv.register_forward_hook(
                lambda module, inputs, output, layer=layer: fused.append((layer, output))
            )
        )
    masks: Tensor | dict[str, Tensor] | None = attention_mask
    if layers and attention_mask is not None and attention_mask.dim() == 4:
        places = torch.arange(input_ids.shape[1])
        near = (places[:, None] - places).abs() <= model.config.local_attention // 2
        masks = {"full_attention": attention_mask, "sliding_attention": attention_mask & near}
    outputs = model(input_ids=input_ids, attention_mask=masks, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    # DeBERTa projects its relative positions with the same modules, as one row
    states = {name: [x for x in found if x.shape[:2] == input_ids.shape] for name, found in states.items()}
    for layer, output in fused:
        for name, x in zip(PROJECTIONS, output.chunk(3, dim=-1), strict=True):
            states[name].append(x if name == "value" else _turn(x, layer))
    return states | {"embeddings": [outputs.hidden_states[0]], "hidden": list(outputs.hidden_states[1:])}


def _turn(x: Tensor, layer: Any) -> Tensor:
    """Return queries or keys [B, L, H], turned: pairs of dimensions are complex numbers, times e^(i · position · f)."""
    half = layer.attn.head_dim // 2
    theta = layer.config.rope_parameters[layer.attention_type]["rope_theta"]
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1])[:, None] * frequencies
    pairs = x.double().unflatten(-1, (-1, 2, half))
    turned = torch.complex(pairs[..., 0, :], pairs[..., 1, :]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(2).to(x.dtype)


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
