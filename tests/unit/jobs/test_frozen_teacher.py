"""A teacher gets a number format that its activations fit in, or is refused before the first step."""

import functools

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.harness.machine import peak_allocated_bytes
from ds_distill.data.batch import Batch
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs import frozen_teacher
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.precision import teacher_dtype
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def batch(mask: torch.Tensor | None = None) -> Batch:
    ids = torch.arange(5, 37).view(2, 16)
    return Batch(ids, torch.full_like(ids, -100), mask)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A teacher whose activations are beyond fp16's range and within bf16's."""
    folder = save_encoder("bert", tmp_path_factory.mktemp("large"))
    model = load_masked_lm(str(folder))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(1e5)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "device, student, wanted, saved, expected",
    [
        (CPU, BF16, "auto", FP16, BF16),
        (CPU, BF16, "fp32", None, FP32),
        (CUDA, FP32, "auto", None, FP32),
        (CUDA, BF16, "auto", None, FP16),
        (CUDA, BF16, "auto", BF16, BF16),
        (CUDA, FP16, "auto", BF16, FP32),
        (CUDA, BF16, "bf16", FP16, BF16),
    ],
)
def test_the_format_of_a_teacher(device, student, wanted, saved, expected):
    assert teacher_dtype(device, student, wanted, saved) == expected


def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(UserError, match="training.teacher_precision = fp16: this machine has no GPU"):
        teacher_dtype(CPU, BF16, "fp16")


def test_a_teacher_too_large_for_fp16_is_named_with_the_remedy(large, monkeypatch):
    start_distributed()
    folder = find_model_folder(str(large))
    freeze = frozen_teacher.freeze_teachers
    assert freeze([load_masked_lm(folder)], [folder], Recipe(), batch(), CPU, BF16).decoder_weight.dtype == BF16
    monkeypatch.setattr(frozen_teacher, "teacher_dtype", lambda *_: FP16)
    with pytest.raises(UserError) as caught:
        freeze([load_masked_lm(folder)], [folder], Recipe(), batch(), CPU, BF16)
    assert str(caught.value).startswith(f"teacher {large}: its hidden states are not finite in fp16 on a batch of the")
    assert "training.teacher_precision = bf16" in str(caught.value)


def test_logits_are_looked_at_and_padding_is_not(large, monkeypatch):
    teacher = Teacher(load_masked_lm(str(large)))
    assert frozen_teacher.not_finite(teacher, batch()) is None
    teacher.decoder_bias[7] = torch.inf
    assert frozen_teacher.not_finite(teacher, batch()).startswith("its logits are not finite in fp32")
    teacher.decoder_bias[7] = 0
    teacher.model.bert.embeddings.position_embeddings.weight[15] = torch.nan
    assert frozen_teacher.not_finite(teacher, batch()).startswith("its hidden states are not finite")
    teacher.model.bert.embeddings.position_embeddings.weight[15] = 0
    real, targets = torch.arange(16).expand(2, 16) < 15, teacher.targets

    def with_nan_in_padding(*inputs, **options):
        found = targets(*inputs, **options)
        found.decoder_input[:, 15] = torch.nan
        return found

    monkeypatch.setattr(teacher, "targets", with_nan_in_padding)
    assert frozen_teacher.not_finite(teacher, batch(real)) is None
    assert frozen_teacher.not_finite(teacher, batch()) is not None


def test_the_look_at_the_logits_of_a_large_vocabulary_takes_little_memory():
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    teacher = Teacher(BertForMaskedLM(BertConfig(**shape, vocab_size=256_000, max_position_embeddings=256)))
    ids = torch.arange(1024).view(4, 256)
    look = functools.partial(frozen_teacher.not_finite, teacher, Batch(ids, torch.full_like(ids, -100), None))
    assert look() is None and peak_allocated_bytes(look, CPU) < 150e6, "all of its logits are 1 GB"
    with torch.no_grad():
        teacher.decoder_bias[200_000] = torch.nan
    assert look().startswith("its logits")
