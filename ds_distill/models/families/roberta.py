"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020).

Their positions start after the padding id, and their head has names of its own. Their students are
of the same family: transformers' RoBERTa has no smaller sister class, and needs none.
"""

from ds_distill.models.families.bert import BERT
from ds_distill.models.families.family import Family


def _family(name: str) -> Family:
    return Family(
        name=name,
        student=name,
        trunk="roberta",
        layers="roberta.encoder.layer",
        embeddings="roberta.embeddings",
        decoder="lm_head.decoder",
        head=("lm_head.dense", "lm_head.layer_norm"),
        transform=lambda model, hidden: model.lm_head.layer_norm(_gelu(model.lm_head.dense(hidden))),
        block=BERT.block,
        first_position=lambda config: config.pad_token_id + 1,
    )


def _gelu(hidden):
    from transformers.activations import gelu  # their head applies it, whatever the config's activation

    return gelu(hidden)


ROBERTA, XLM_ROBERTA = _family("roberta"), _family("xlm-roberta")
