"""Test the article before the names of all families and of their classes."""

import pytest

from ds_distill.models.families import FAMILIES
from ds_distill.utils.articles import with_article

# as people say these names; the beginning of each one's classes sounds like the name
ARTICLES = {
    "albert": ("an", "Albert"),
    "bert": ("a", "Bert"),
    "camembert": ("a", "Camembert"),
    "deberta-v2": ("a", "DebertaV2"),
    "distilbert": ("a", "DistilBert"),
    "electra": ("an", "Electra"),
    "modernbert": ("a", "ModernBert"),
    "mpnet": ("an", "MPNet"),
    "roberta": ("a", "Roberta"),
    "xlm-roberta": ("an", "XLMRoberta"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_and_its_class_have_their_article(family):
    article, start = ARTICLES[family]
    for name in (family, f"{start}ForMaskedLM"):
        assert with_article(name) == f"{article} {name}"


def test_the_bare_encoder_has_its_article():
    assert with_article("encoder") == "an encoder" and with_article("masked-lm") == "a masked-lm"
