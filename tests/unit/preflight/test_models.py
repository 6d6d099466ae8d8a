"""Test which teachers cannot teach together."""

import pytest
from transformers import AutoModel, BertConfig, BertModel

from ds_distill.models.folder import find_model_folder
from ds_distill.preflight.models import check_one_vocabulary
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder


def test_teachers_whose_tokens_may_differ_are_refused(tmp_path):
    first = save_encoder("bert", tmp_path / "first")
    size = AutoModel.from_pretrained(first).config.vocab_size
    for tokens in (size, 2 * size):
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=tokens, **sizes)).save_pretrained(tmp_path / f"{tokens}")
    same, other = (find_model_folder(str(tmp_path / f"{tokens}"), "--teacher") for tokens in (size, 2 * size))
    teacher = find_model_folder(str(first), "--teacher")
    check_one_vocabulary([teacher, same], logits=False)
    for pair in ([teacher, other], [other, teacher]):
        with pytest.raises(UserError, match=f"one tokenizer, which .*{2 * size} lacks; add its"):
            check_one_vocabulary(pair, logits=False)
    with pytest.raises(UserError, match="its tokenizer has the fingerprint"):
        check_one_vocabulary(
            [teacher, find_model_folder(str(save_encoder("roberta", tmp_path / "roberta")), "--teacher")], logits=False
        )
