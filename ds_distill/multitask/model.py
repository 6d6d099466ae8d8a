"""One encoder that several tasks train at once, each with a head of its own, beside its masked-LM head, which rests."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.models.families import INPUTS, get_family, get_input_names
from ds_distill.tasks.catalog import MASKED_LM


class MultitaskModel(nn.Module):
    """A masked-LM model's encoder with the heads of several tasks.

    Each task is a model of its stock class in which the parts of the encoder are those of the masked-LM model, so
    that a step of a task is a step of that class, and `save_pretrained` writes it as one. A BERT's pooler is part of
    the head of a task.

    The masked-LM head is frozen, and the word embeddings with it where they are its decoder: it reads the encoder at
    the end with the weights that it had. The state has each weight once, and none of the masked-LM head's.

    Attributes:
        encoder: The encoder.
        heads: What each task has beside it, in the order of the tasks.
        tasks: The models by task.
        masked_lm: In a tuple, so that its head is no part of the state, the masked-LM model.
    """

    def __init__(self, masked_lm: PreTrainedModel, tasks: Iterable[tuple[str, PreTrainedModel]]):
        """Share the encoder of `masked_lm` with the models in `tasks`, in place.

        Args:
            masked_lm: The masked-LM model.
            tasks: Names and models of the same family and sizes. The own encoder of each is given up before the next
                is asked for.
        """
        super().__init__()
        self.masked_lm: tuple[PreTrainedModel] = (masked_lm,)
        self.tasks: dict[str, PreTrainedModel] = {}
        self.encoder = get_family(masked_lm).get_encoder(masked_lm)
        self.heads = nn.ModuleList()
        for name, model in tasks:
            self.heads.append(nn.ModuleList(share_encoder(model, self.encoder)))
            self.tasks[name] = model
        prefix = get_family(masked_lm).prefix(masked_lm)
        # A tied decoder is listed too, as the head's; it is the same parameter as the word embeddings.
        for name, parameter in masked_lm.named_parameters(remove_duplicate=False):
            if not name.startswith(prefix):
                parameter.requires_grad_(False)
        self._inputs = {name: get_input_names(model, INPUTS) for name, model in self.tasks.items()}

    def forward(self, task: str, input_ids: Tensor, attention_mask: Tensor | None = None, **batch: Tensor) -> Tensor:
        """Return the loss of a batch of one task, a mean over its examples, or for masked LM over its masked tokens.

        Args:
            task: The task, or MASKED_LM.
            input_ids: [B, L] int64.
            attention_mask: [B, L], 1 on real tokens; None where all are real.
            **batch: The other inputs and the labels, by the names of the task's model; for masked LM `labels`, [B, L]
                int64, −100 where nothing is to be predicted.
        """
        if task == MASKED_LM:
            return self._masked_lm_loss(input_ids, attention_mask, batch["labels"])
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **batch}
        taken = {name: value for name, value in inputs.items() if name not in INPUTS or name in self._inputs[task]}
        return self.tasks[task](**taken).loss

    def _masked_lm_loss(self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor) -> Tensor:
        (model,) = self.masked_lm
        family, masked = get_family(model), labels >= 0
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        # Logits of the masked tokens alone take a seventh of the memory.
        logits = family.get_decoder(model)(family.mlm_transform(model, hidden[masked]))
        return nn.functional.cross_entropy(logits.float(), labels[masked], reduction="sum") / max(1, len(logits))

    def set_attention(self, implementation: str) -> None:
        """Set how all of the models attend: the name of one of transformers' implementations."""
        for model in (*self.masked_lm, *self.tasks.values()):
            model.set_attn_implementation(implementation)

    def to_device(self, device: torch.device) -> None:
        """Move all of it, the masked-LM head included, to a device."""
        for part in (*self.masked_lm, self):
            part.to(device)  # type: ignore[arg-type]  # wrong in transformers


def share_encoder(model: PreTrainedModel, encoder: nn.Module) -> list[nn.Module]:
    """Put the parts of `encoder` in place of those of a model with a head; return the parts that are the model's own.

    Args:
        model: A model with the head of a task, changed in place.
        encoder: The encoder of a masked-LM model of the same family and sizes.
    """
    base = model.base_model
    shared = dict(encoder.named_children())
    for name, part in shared.items():
        setattr(base, name, part)
    own = [part for part in model.children() if part is not base]
    return own + [part for name, part in base.named_children() if name not in shared]
