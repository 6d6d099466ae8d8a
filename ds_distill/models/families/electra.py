"""ELECTRA (Clark et al. 2020): BERT's layers, over embeddings that have a width of their own.

Its generator is a masked-LM model, and its decoder is as wide as its embeddings. Its discriminator, which tells
replaced tokens from others, has no masked-LM head: it teaches without one. Students with narrow embeddings are
ELECTRAs.
"""

from ds_distill.models.families.family import AsBert, ConfigNames, Factors, Family

RENAMES = {
    "electra.": "bert.",
    "generator_predictions.": "cls.predictions.transform.",
    "generator_lm_head.": "cls.predictions.decoder.",
}

ELECTRA = Family(
    name="electra",
    title="ELECTRA",
    encoder="electra",
    layers="electra.encoder.layer",
    decoder="generator_lm_head",
    mlm_transform=lambda model, hidden: model.generator_predictions(hidden),
    names=ConfigNames(embedding="embedding_size"),
    as_bert=AsBert(RENAMES),
    factors=Factors("electra.embeddings_project", "generator_predictions.dense", "generator_predictions.LayerNorm"),
    has_pooler=False,
)
