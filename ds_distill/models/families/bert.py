"""BERT (Devlin et al. 2019). Its student is a DistilBERT."""

from ds_distill.models.families.family import Family

BERT = Family(
    name="bert",
    student="distilbert",
    trunk="bert",
    layers="bert.encoder.layer",
    embeddings="bert.embeddings",
    decoder="cls.predictions.decoder",
    head=("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    block=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ),
)
