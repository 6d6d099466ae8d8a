"""Loading of a model for use in Python: `from ds_distill import load`."""

from pathlib import Path

from transformers import PreTrainedModel

from ds_distill.exporters.model import HEADS, load_source
from ds_distill.models.families import get_family
from ds_distill.utils.errors import UserError, did_you_mean


def load(model: str | Path, *, head: str | None = None) -> PreTrainedModel:
    """Load a Hugging Face folder as transformers' stock class, in fp32, in eval mode, also one of pruned layers.

    Args:
        model: Folder, or name of a model in the Hugging Face cache.
        head: "masked-lm", "classification", "token-classification", "question-answering" or "encoder"; the one that
            the folder's config names when not given.

    Raises:
        UserError: The folder has no such model, or config and weights do not fit each other.
    """
    if head is not None and head not in HEADS:
        raise UserError(f"head = {head!r}: no such head{did_you_mean(head, HEADS)}; give one of {', '.join(HEADS)}")
    loaded = load_source(str(model), head, option="model =").model
    loaded.set_attn_implementation(get_family(loaded).attention)
    return loaded
