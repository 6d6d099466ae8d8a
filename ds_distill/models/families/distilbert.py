"""DistilBERT (Sanh et al. 2019).

It has no token types, its LayerNorm's eps is fixed in the code, and its decoder is tied.
"""

from ds_distill.models.families.family import AsBert, ConfigNames, Family

RENAMES = {
    "distilbert.embeddings.": "bert.embeddings.",
    "distilbert.transformer.layer.": "bert.encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
    "vocab_transform.": "cls.predictions.transform.dense.",
    "vocab_layer_norm.": "cls.predictions.transform.LayerNorm.",
    "vocab_projector.": "cls.predictions.decoder.",
}

DISTILBERT = Family(
    name="distilbert",
    title="DistilBERT",
    encoder="distilbert",
    layers="distilbert.transformer.layer",
    decoder="vocab_projector",
    mlm_transform=lambda model, hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))),
    names=ConfigNames(
        depth="n_layers",
        heads="n_heads",
        width="dim",
        feed_forward="hidden_dim",
        activation="activation",
        dropouts=("dropout", "attention_dropout"),
        head_dropouts=("seq_classif_dropout", "qa_dropout"),
    ),
    as_bert=AsBert(RENAMES),
    ffn=("ffn.lin1", "ffn.activation"),
    outputs=("attention.out_lin", "ffn.lin2"),
    output_norms=("sa_layer_norm", "output_layer_norm"),
    projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    eps=1e-12,
    sinusoidal="sinusoidal_pos_embds",
    has_pooler=False,
)
