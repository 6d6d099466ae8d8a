"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020).

Their positions start after the padding id, and their head has names of its own.
"""

from ds_distill.models.families.family import Family


def roberta_like(name: str) -> Family:
    """Return the family of a class that transformers derives from RoBERTa's."""
    return Family(
        name=name,
        encoder="roberta",
        layers="roberta.encoder.layer",
        decoder="lm_head.decoder",
        mlm_transform=lambda model, hidden: model.lm_head.layer_norm(_gelu(model.lm_head.dense(hidden))),
        first_position=lambda config: config.pad_token_id + 1,
    )


def _gelu(hidden):
    from transformers.activations import gelu  # their head applies it, whatever the config's activation

    return gelu(hidden)


ROBERTA, XLM_ROBERTA = roberta_like("roberta"), roberta_like("xlm-roberta")
