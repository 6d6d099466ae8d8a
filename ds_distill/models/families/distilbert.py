"""DistilBERT (Sanh et al. 2019).

It has no token types, its LayerNorm's eps is fixed in the code, and its decoder is tied.
"""

from ds_distill.models.families.family import Family

DISTILBERT = Family(
    name="distilbert",
    student="distilbert",
    trunk="distilbert",
    layers="distilbert.transformer.layer",
    embeddings="distilbert.embeddings",
    decoder="vocab_projector",
    head=("vocab_transform", "vocab_layer_norm"),
    transform=lambda model, hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))),
    block=(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
    activation="ffn.activation",
    sizes=("n_layers", "n_heads", "dim", "hidden_dim", "activation"),
    dropouts=("dropout", "attention_dropout"),
    head_dropouts=("seq_classif_dropout", "qa_dropout"),
    token_types=False,
    eps=1e-12,
)
