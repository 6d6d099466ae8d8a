"""CamemBERT (Martin et al. 2020), which transformers derives from RoBERTa."""

from ds_distill.models.families.roberta import roberta_like

CAMEMBERT = roberta_like("camembert", "CamemBERT")
