"""BERT (Devlin et al. 2019).

Its student is a DistilBERT; an ELECTRA where it has embeddings of their own width, an ALBERT where it shares layers.
"""

from ds_distill.models.families.albert import ALBERT_OF_BERT
from ds_distill.models.families.distilbert import STUDENT_OF_BERT
from ds_distill.models.families.electra import ELECTRA_OF_BERT
from ds_distill.models.families.family import Family

BERT = Family(
    name="bert",
    title="BERT",
    encoder="bert",
    layers="bert.encoder.layer",
    decoder="cls.predictions.decoder",
    mlm_transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    student=STUDENT_OF_BERT,
    other_students=(ELECTRA_OF_BERT, ALBERT_OF_BERT),
)
