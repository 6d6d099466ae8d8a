"""ELECTRA (Clark et al. 2020): BERT's layers, over embeddings that have a width of their own.

Its generator is a masked-LM model, and its decoder is as wide as its embeddings. Its discriminator, which tells
replaced tokens from others, has no masked-LM head: it teaches without one.
"""

from __future__ import annotations

from typing import Any

from ds_distill.models.families.bert import BERT
from ds_distill.models.families.family import ConfigNames, Family, StudentClass
from ds_distill.utils.errors import UserError

RENAMES = {
    "bert.": "electra.",
    "cls.predictions.transform.": "generator_predictions.",
    "cls.predictions.decoder.": "generator_lm_head.",
    "cls.predictions.bias": "generator_lm_head.bias",
}


def _make_bert_config(electra: Any) -> Any:
    from transformers import BertConfig

    if electra.embedding_size != electra.hidden_size:
        raise UserError(
            f"student.family = bert: the teacher's embeddings have a width of {electra.embedding_size}, its layers one "
            f"of {electra.hidden_size}, and a BERT has one width; give electra, or leave it out"
        )
    return BertConfig(
        vocab_size=electra.vocab_size,
        max_position_embeddings=electra.max_position_embeddings,
        type_vocab_size=electra.type_vocab_size,
        pad_token_id=electra.pad_token_id,
        initializer_range=electra.initializer_range,
        layer_norm_eps=electra.layer_norm_eps,
    )


ELECTRA = Family(
    name="electra",
    title="ELECTRA",
    encoder="electra",
    layers="electra.encoder.layer",
    decoder="generator_lm_head",
    mlm_transform=lambda model, hidden: model.generator_predictions(hidden),
    names=ConfigNames(embedding="embedding_size"),
    other_students=(StudentClass(BERT, _make_bert_config, RENAMES, lambda weights: weights),),
    has_pooler=False,
)
