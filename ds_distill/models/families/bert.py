"""BERT (Devlin et al. 2019). Its student is a DistilBERT."""

from ds_distill.models.families.family import Family

BERT = Family(
    name="bert",
    title="BERT",
    encoder="bert",
    layers="bert.encoder.layer",
    decoder="cls.predictions.decoder",
    mlm_transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    student="distilbert",
)
