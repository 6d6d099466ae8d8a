"""Test estimates against counts by hand and against what a run then shows."""

import json
import math
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, MPNetConfig

from benchmarks.harness.machine import peak_bytes
from ds_distill.estimate.estimate import Estimator
from ds_distill.estimate.flops import flops_per_token, forward_flops_per_token
from ds_distill.estimate.hardware import DEVICES, H100_SMALL
from ds_distill.estimate.known_models import find_known_model
from ds_distill.estimate.matches import MatchCost, match_cost
from ds_distill.estimate.memory import activation_bytes, activation_bytes_fit, estimate_memory
from ds_distill.estimate.plan import plan
from ds_distill.kernels.fused_linear import (
    LIVE_BYTES,
    fused_linear_distillation_loss,
    live_bytes,
    release_workspace,
)
from ds_distill.models.folder import find_model_folder
from ds_distill.models.student import build_student
from ds_distill.recipe import Data, Losses, Match, Recipe, Stage, Student, Training
from ds_distill.training.trainer import explain_training_memory
from ds_distill.utils.errors import UserError
from ds_distill.utils.memory import memory_limit
from tests.start import ROOT
from tests.unit.models.test_teacher import tiny_bert, tiny_deberta, tiny_roberta


def test_flops_of_the_papers_models():
    """BERT-base and DistilBERT at 128 tokens, with both heads on all of them.

    The counts are 12(24H²+4LH) + 2HV+2H² and three times half of it.
    """
    from transformers import BertConfig, DistilBertConfig

    h, v, length = 768, 30_522, 128
    expected = (
        12 * (24 * h * h + 4 * length * h)
        + 2 * h * v
        + 2 * h * h
        + 3 * (6 * (24 * h * h + 4 * length * h) + 2 * h * v + 2 * h * h)
    )
    assert flops_per_token(BertConfig(), DistilBertConfig(), length) == expected == pytest.approx(629e6, rel=1e-3)


def test_terms_of_a_match_are_counted():
    """Three self-relations of two layers' pair are four score-sized products each; the rest follows by hand."""
    from transformers import BertConfig, DistilBertConfig

    teacher, student, length = BertConfig(), DistilBertConfig(dim=384, n_heads=12, hidden_dim=1536), 128

    def of(*match: Match) -> MatchCost:
        return match_cost(Losses(match=list(match)), student, teacher, [0, 2, 4, 7, 9, 11], length, 2)

    relation = of(Match("relation", layers="last"))
    assert relation.flops == 3 * 2 * 128 * (768 + 3 * 384) and relation.bytes == 3 * (4 * 384 + 2 * 768)
    assert of(Match("relation", of="query_key", layers="last")).bytes == 2 * (4 * 384 + 2 * 768)
    # the Gram matrices do not grow with the length of a sequence
    attention = of(Match("attention", layers="last"))
    assert attention.flops == 12 * 2 * (2 * (32 + 64) ** 2 + 4 * (32 + 64) * 32)
    mse = of(Match("mse", of=["embeddings", "hidden"], layers="uniform"))
    assert mse.flops == 7 * 3 * 2 * 384 * 768 and mse.bytes == 7 * (2 * 4 * 768 + 2 * 768)
    assert of() == (0, 0)
    recipe = Recipe(data=Data(sequence_length=length), losses=Losses(match=[Match("relation", layers="last")]))
    recipe.training.micro_batch_size = 16
    plain, matched = (
        Estimator(
            Recipe(recipe.data, losses=losses, training=recipe.training), [find_known_model(name)], DEVICES["h100"]
        )
        for name, losses in (("bert-base-uncased", Losses()), ("bert-base-uncased", recipe.losses))
    )
    assert matched.flops_per_token - plain.flops_per_token == 3 * 2 * 128 * (768 + 3 * 768)
    added = matched.memory(16, 0, 1).loss - plain.memory(16, 0, 1).loss
    assert added == pytest.approx(16 * 128 * 3 * (4 * 768 + 2 * 768))
    assert (
        matched.known_rate(DEVICES["h100"], 16).tokens_per_second
        < plain.known_rate(DEVICES["h100"], 16).tokens_per_second
    )


def test_activations_grow_with_sequences_and_checkpointing_drops_them():
    student = build_student(tiny_bert(4))
    count = lambda n: activation_bytes(student, n, 16, torch.float32, torch.device("cpu"))  # noqa: E731
    assert 0 < count(1) and count(9) - count(8) == pytest.approx(count(5) - count(4))
    assert (
        count(8) > 2 * 8 * 16 * 34 * 32
    )  # two layers keep about 34 H numbers per token (Korthikanti et al. 2022), apart from attention
    full = count(8)
    student.gradient_checkpointing_enable()
    assert count(8) < 0.6 * full
    assert activation_bytes(student, 8, 16, torch.bfloat16, torch.device("cpu")) == count(8) / 2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("make", [tiny_bert, tiny_deberta])
def test_activations_are_counted_without_weights(make, dropout):
    """On the meta device as many bytes are counted as real models keep, whose attention is fused without dropout."""
    student = build_student(make(4), dropout=dropout)
    real = activation_bytes_fit(student, 16, torch.float32, torch.device("cpu"))
    student = student.to("meta")
    shapes = activation_bytes_fit(student, 16, torch.float32, torch.device("meta"), fused_attention=not dropout)
    assert shapes == real


def test_what_grows_with_the_square_of_the_length_is_counted_for_relative_positions():
    """Each layer keeps, head by head, the softmax of the scores and the rows of both gathers, also on a GPU."""

    def square(length: int) -> float:
        student = build_student(tiny_deberta(4, max_position_embeddings=64), dropout=0.0).to("meta")
        return activation_bytes_fit(student, length, torch.float32, torch.device("meta"), fused_attention=True)[1]

    # the second difference is that of L²: 2 layers, 4 heads, 4 bytes
    second = square(48) - 2 * square(32) + square(16)
    assert second / (2 * 16**2) >= 2 * 4 * 4
    length, h, inner, v, span = 128, 768, 3072, 128_100, 256
    teacher = find_known_model("deberta-v3-base").config
    layer = 4 * h * h + 2 * h * inner + 2 * length * h + 2 * (2 * span) * h
    assert forward_flops_per_token(teacher, length) == 2 * (12 * layer + h * h + h * v)


def test_memory_of_a_step_is_what_an_h100_took():
    """The committed report has the peak of a step above what stands between steps."""
    parts = json.loads((ROOT / H100_SMALL.report / "gpu_suite.json").read_text())["parts"]
    for step in (parts["step_128"], parts["large"]):
        training = Training(global_batch_size=step["sequences"], micro_batch_size=step["sequences"])
        recipe = Recipe(data=Data(sequence_length=step["length"]), training=training)
        estimator = Estimator(recipe, [find_known_model("bert-base-uncased")], DEVICES["h100"])
        need = estimator.memory(step["sequences"], step["zero"], 1)
        assert (need.activations + need.loss) / 1e6 == pytest.approx(step["peak_mb_per_step"]["engine"], rel=0.04)


def test_only_what_runs_of_the_teachers_counts():
    """A bare encoder up to the highest layer that is compared; of several teachers all, and their joined decoders."""
    data, bert, small = Data(sequence_length=128), "bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"
    whole, other = find_known_model(bert), find_known_model(small)
    within = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[Match("mse", layers=[[5, 8]])])
    bare = Estimator(Recipe(data=data, losses=within), [whole], DEVICES["h100"])
    width, layer = 768, 4 * 768**2 + 2 * 768 * 3072
    forward = 2.0 * (layer + 2 * 128 * width)  # a layer's products, and its scores and values, per token
    assert bare.flops_per_token == pytest.approx((9 + 3 * 6) * forward) and bare.projected == 0
    biases = 9 * width + 3072  # of the linear layers and norms
    embeddings = (30_522 + 512 + 2 + 2) * width
    assert bare.teacher_bytes == 2 * (embeddings + 9 * (layer + biases))
    one = Estimator(Recipe(data=data), [whole], DEVICES["h100"])
    two = Estimator(Recipe(data=data), [whole, other], DEVICES["h100"])
    joined = 30_522 * (768 + 384)
    assert two.teacher_bytes == one.teacher_bytes + 2 * (22_744_506 + joined)
    assert two.flops_per_token == one.flops_per_token + forward_flops_per_token(other.config, 128)


def test_each_stage_counts_by_its_share():
    """Two teachers, which run in the stages that compare something with them; the terms and the heads of each stage."""
    teachers = [find_known_model("bert-base-uncased"), find_known_model("bert-large-uncased")]
    objectives = [
        Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[Match("relation", layers="last", heads=16)]),
        Losses(kl=0.0, cosine=0.0),  # masked LM alone
        Losses(),
    ]
    alone = [Estimator(Recipe(losses=losses), teachers, DEVICES["h100"]) for losses in objectives]
    stages = [Stage(share, vars(losses)) for share, losses in zip((0.5, 0.25, 0.25), objectives, strict=True)]
    for stage in stages:
        del stage.losses["teacher_weights"]
    found = Estimator(Recipe(stages=stages), teachers, DEVICES["h100"])
    expected = sum(stage.share * one.flops_per_token for stage, one in zip(stages, alone, strict=True))
    assert found.flops_per_token == pytest.approx(expected, rel=1e-12)
    assert found.matches.bytes == max(one.matches.bytes for one in alone) > 0
    seconds = sum(
        stage.share / one.known_rate(DEVICES["h100"], 16).tokens_per_second
        for stage, one in zip(stages, alone, strict=True)
    )
    assert 1 / found.known_rate(DEVICES["h100"], 16).tokens_per_second == pytest.approx(seconds, rel=0.02)


def test_memory_by_stage_is_the_papers_arithmetic():
    student = build_student(tiny_roberta(4))
    count = student.num_parameters()

    def of(stage, ranks, dtype):
        return estimate_memory(
            student,
            20,
            Training(micro_batch_size=4),
            length=16,
            stage=stage,
            ranks=ranks,
            dtype=dtype,
            accumulation=1,
            activations=0.0,
            device="cpu",
        )

    assert of(0, 8, torch.float32).optimizer == 8 * count and of(0, 8, torch.float32).weights == 4 * count
    assert of(1, 8, torch.bfloat16).optimizer == 12 * count / 8 and of(1, 8, torch.bfloat16).weights == 2 * count
    assert of(2, 8, torch.bfloat16).gradients == 4 * count / 8
    assert of(3, 8, torch.bfloat16).weights == 2 * count / 8 + 2 * count
    assert of(2, 4, torch.bfloat16).teacher == 20


def test_live_bytes_of_the_loss():
    assert live_bytes(10, 1000, 2, "cpu") == 10 * 1000 * (2 * 2 + 5 * 4)
    assert live_bytes(10, 1000, 2, "cuda") == 10 * 1000 * (
        2 * 4 + 2 + 7 * 4
    )  # fp32 logits, with their gradient beside them
    assert live_bytes(10, 1000, 4, "cuda") == 10 * 1000 * (2 * 4 + 7 * 4)
    # At 16,384 tokens, benchmarks.training.vocab_loss measured 1,098 MB on an H100.
    # That includes gradients and copies of the weights (47, 94 and 25 MB).
    assert live_bytes(16_384, 30_522, 2, "cuda", "triton") == 2432 * 30_528 * 10
    for size in (2, 4):
        assert 0.9 * LIVE_BYTES["cpu"] < live_bytes(10**6, 30_522, size, "cpu") <= 1.2 * LIVE_BYTES["cpu"]


def test_the_loss_of_a_vocabulary_of_256000_takes_no_more_than_is_said():
    """Measured on a CPU, where the logits of both models alone would take 512 MB.

    The copy of the masked rows, 15 % of a chunk, and that of the weight's gradient are left to the margin.
    """
    rows, width, vocabulary = 250, 16, 256_000
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with torch.device("meta"):
        student = BertForMaskedLM(config)
    settings = dict(length=rows, stage=0, ranks=1, dtype=torch.float32, accumulation=1, activations=0, device="cpu")
    said = estimate_memory(student, 0.0, Training(micro_batch_size=1), **settings).loss
    assert live_bytes(rows, vocabulary, 4, "cpu") == said - 4 * width * (rows + vocabulary) < 300e6
    labels = torch.where(torch.arange(rows) % 7 == 0, torch.arange(rows), -100)
    hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    taught = torch.randn(rows, width), torch.randn(vocabulary, width), None

    def step(count: int = rows) -> None:
        loss, *_ = fused_linear_distillation_loss(
            hidden[:count],
            weight,
            None,
            taught[0][:count],
            *taught[1:],
            labels[:count],
            temperature=2.0,
            kl_weight=1.0,
            mlm_weight=1.0,
        )
        loss.backward()

    step(1)  # lets the libraries allocate their own buffers, and the gradients
    release_workspace()
    assert peak_bytes(step, torch.device("cpu")) < 1.4 * said < 450e6
    for device in ("cpu", "cuda"):  # in 16 bit, at the batch of a GPU
        assert live_bytes(32_768, vocabulary, 2, device, "triton") <= LIVE_BYTES[device]


def test_out_of_memory_says_what_to_lower():
    with pytest.raises(
        UserError,
        match=r"micro_batch_size = 32: try training.micro_batch_size = 16, or training.gradient_checkpointing",
    ):
        with explain_training_memory(Training(micro_batch_size=32), BertConfig()):
            torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(UserError, match="a shorter data.sequence_length"):
        with explain_training_memory(Training(micro_batch_size=1), BertConfig()):
            torch.empty(1 << 60, dtype=torch.uint8)
    for config, training in ((MPNetConfig(), Training()), (BertConfig(), Training(gradient_checkpointing=True))):
        with pytest.raises(UserError) as told:  # what cannot be set, or is set already, is no advice
            with explain_training_memory(training, config):
                torch.empty(1 << 60, dtype=torch.uint8)
        assert "gradient_checkpointing" not in str(told.value) and "ZeRO" in str(told.value)
    with pytest.raises(RuntimeError, match="shape"):
        with explain_training_memory(Training(), BertConfig()):
            torch.zeros(3).view(2)


def test_memory_is_what_a_container_allows(monkeypatch):
    files = {
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    monkeypatch.setattr(
        "ds_distill.utils.memory.Path", lambda file: SimpleNamespace(read_text=lambda encoding: files[file])
    )
    assert memory_limit() == psutil.virtual_memory().total
    files["/sys/fs/cgroup/memory.max"] = f"{2**30}\n"
    assert memory_limit() == 2**30


@pytest.mark.parametrize(
    "key, value", [("ranks", 0), ("ranks", -1), ("tokens_per_second", 0.0), ("memory_gib", math.nan)]
)
def test_a_plan_for_nothing_is_refused(key, value):
    given = {"ranks": 1, "memory_gib": None, "tokens_per_second": None, key: value}
    with pytest.raises(UserError, match=f"--{key} {value}: must be above 0"):
        plan(Recipe(), ["T"], None, **given)


def test_a_plan_for_layers_that_there_are_not_is_refused(tmp_path):
    tiny_bert(4).config.save_pretrained(tmp_path)
    recipe = Recipe(student=Student(init_layers=[0, 9]), data=Data(sequence_length=16))
    with pytest.raises(UserError, match=r"student.init_layers\[1\] = 9: the teacher has 4 layers"):
        plan(recipe, [find_model_folder(str(tmp_path))], None, 1, None, 1000.0)
