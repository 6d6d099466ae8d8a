"""ELECTRA (Clark et al. 2020): BERT's layers, over embeddings that have a width of their own.

Its generator is a masked-LM model, and its decoder is as wide as its embeddings. Its discriminator, which tells
replaced tokens from others, has no masked-LM head: it teaches without one. The student of a BERT becomes an ELECTRA
where its embeddings are to be narrower than its layers.
"""

from __future__ import annotations

from typing import Any

from ds_distill.models.families.family import ConfigNames, Factors, Family, StudentClass
from ds_distill.utils.errors import UserError

BERTS_NAMES = {
    "bert.": "electra.",
    "cls.predictions.transform.": "generator_predictions.",
    "cls.predictions.decoder.": "generator_lm_head.",
    "cls.predictions.bias": "generator_lm_head.bias",
}
NAMES_IN_BERT = {
    "electra.": "bert.",
    "generator_predictions.": "cls.predictions.transform.",
    "generator_lm_head.": "cls.predictions.decoder.",
}
KEPT = (
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "pad_token_id",
    "initializer_range",
    "layer_norm_eps",
)


def _make_bert_config(electra: Any) -> Any:
    from transformers import BertConfig

    if electra.embedding_size != electra.hidden_size:
        raise UserError(
            f"student.family = bert: the teacher's embeddings have a width of {electra.embedding_size}, its layers one "
            f"of {electra.hidden_size}, and a BERT has one width; give electra, or leave it out"
        )
    return BertConfig(**{key: getattr(electra, key) for key in KEPT})


def make_electra_config(teacher: Any) -> Any:
    """Return the config of an ELECTRA with what carries over from a teacher of BERT's kind."""
    from transformers import ElectraConfig

    return ElectraConfig(embedding_size=teacher.hidden_size, **{key: getattr(teacher, key) for key in KEPT})


ELECTRA_OF_BERT = StudentClass("electra", make_electra_config, NAMES_IN_BERT)

ELECTRA = Family(
    name="electra",
    title="ELECTRA",
    encoder="electra",
    layers="electra.encoder.layer",
    decoder="generator_lm_head",
    mlm_transform=lambda model, hidden: model.generator_predictions(hidden),
    names=ConfigNames(embedding="embedding_size"),
    other_students=(StudentClass("bert", _make_bert_config, BERTS_NAMES),),
    factors=Factors("electra.embeddings_project", "generator_predictions.dense", "generator_predictions.LayerNorm"),
    has_pooler=False,
)
