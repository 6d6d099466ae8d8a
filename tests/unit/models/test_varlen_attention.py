"""Test attention within documents, except for torch's kernel itself.

The kernel needs a GPU; `python -m benchmarks.gpu.checks` tests it there.
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.batch import compute_cu_seqlens
from ds_distill.models import varlen_attention
from ds_distill.models.intermediates import LAST_HIDDEN
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher


def kernel(query, key, value, starts, keys, longest, longest_key):
    """Compute torch.nn.attention.varlen.varlen_attn by its definition.

    All inputs are [tokens, heads, d], and every document attends to itself alone.
    """
    assert starts is keys and longest == longest_key
    out = torch.zeros_like(query)
    for begin, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        assert 0 <= end - begin <= longest
        part = [x[begin:end].transpose(0, 1) for x in (query, key, value)]
        if end > begin:
            out[begin:end] = scaled_dot_product_attention(*part).transpose(0, 1)
    return out


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    bert = BertForMaskedLM(BertConfig(**shape, max_position_embeddings=32)).eval()
    return bert, lambda dropout: build_student(bert, dropout=dropout)


def packed():
    documents = torch.tensor([[0] * 5 + [1] * 19, [0] * 24, [0, 1] + [2] * 10 + [3] * 12])
    mask = (documents[:, :, None] == documents[:, None])[:, None]
    return torch.randint(5, 61, documents.shape), mask, torch.from_numpy(compute_cu_seqlens(documents.numpy()))


def test_teacher_and_student_compute_what_the_mask_says(models):
    bert, student_with = models
    ids, mask, starts = packed()
    for model in (bert, student_with(0.0)):
        expected = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        varlen_attention.use_varlen_attention(model)
        nonsense = torch.ones_like(mask)  # the mask must not be read
        actual = model.base_model(input_ids=ids, attention_mask=nonsense, cu_seq_lens_q=starts).last_hidden_state
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(
            expected, model.base_model(input_ids=ids, attention_mask=nonsense).last_hidden_state, atol=1e-3
        )
    hidden = Teacher(bert).targets(ids, mask, starts).states[LAST_HIDDEN]
    torch.testing.assert_close(hidden, bert.base_model(input_ids=ids, attention_mask=mask).last_hidden_state)


def test_a_student_that_drops_attention_keeps_to_the_mask(models, monkeypatch):
    _, student_with = models
    ids, mask, starts = packed()
    student = student_with(0.3)
    varlen_attention.use_varlen_attention(student)
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda *_: pytest.fail("the kernel has no dropout"))
    torch.manual_seed(1)
    first = student.base_model(input_ids=ids, attention_mask=mask, cu_seq_lens_q=starts).last_hidden_state
    torch.manual_seed(1)
    student.set_attn_implementation("sdpa")
    torch.testing.assert_close(first, student.base_model(input_ids=ids, attention_mask=mask).last_hidden_state)


def test_why_not():
    assert varlen_attention.varlen_unavailable_reason(torch.device("cpu"), torch.bfloat16) == "no GPU"
    assert (
        varlen_attention.varlen_unavailable_reason(torch.device("cuda"), torch.bfloat16, attention="eager")
        == "the model has attention code of its own"
    )
