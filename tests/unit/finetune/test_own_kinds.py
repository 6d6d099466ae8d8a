"""Test that labels of words and any number of labels are encoded, learned from a teacher and scored."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune import runs
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.features import Collator
from ds_distill.finetune.token_features import WordTokens, encode_sentences, keep_labeled, score_tags
from ds_distill.losses.task_distillation import bernoulli_kl, soft_target_loss
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.examples import Examples
from ds_distill.tasks.metrics import scores
from ds_distill.tasks.own_task import find_task
from tests.tiny import FAMILIES, save_encoder

WORDS = ["Ada", "wrote", "it's", "naïve", "in", "(1843)", "日本", "\u200d", "x" * 30, "London"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_is_labeled_at_its_first_token_whatever_the_tokenizer(tmp_path, family):
    tokenizer = load_tokenizer(save_encoder(family, tmp_path / family))
    tags = list(range(len(WORDS)))
    features, words = encode_sentences(Examples([[WORDS, WORDS[:2]]], [tags, tags[:2]]), tokenizer, 256)
    text = " ".join(WORDS)
    ids, labels = features.inputs["input_ids"][0], features.labels["labels"][0]
    assert features.cut == 0 and len(ids) == len(labels)
    alone = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start = 0
    for tag, word in enumerate(WORDS):
        inside = [i for i, (a, b) in enumerate(alone) if a < b and start < b <= start + len(word)]
        assert words.first[0][tag] == (inside[0] if inside else -1), word
        assert not inside or labels[inside[0]] == tag and {labels[i] for i in inside[1:]} <= {-100}
        start += len(word) + 1
    assert sum(label >= 0 for label in labels) == sum(place >= 0 for place in words.first[0])
    cut, places = encode_sentences(Examples([[WORDS]], [tags]), tokenizer, 8)
    assert cut.cut == 1 and places.first[0][-1] == -1, "a word that is truncated away has no token"
    batch = Collator(tokenizer)([features[0], features[1]])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][1, features.lengths[1] :] == -100).all()


def test_sentences_without_a_labeled_token_are_not_trained_on(tmp_path):
    tokenizer = load_tokenizer(save_encoder("bert", tmp_path))
    features, _ = encode_sentences(Examples([[["\u200d"], ["a", "word"]]], [[0], [1, 0]]), tokenizer, 16)
    assert len(keep_labeled(features)) == 1 and keep_labeled(features).labels["labels"][0].count(-100) >= 2


def test_words_without_a_token_count_as_outside_of_entities():
    task = get_task("ner")
    task = SimpleNamespace(labels=("O", "B-x", "I-x"), metrics=task.metrics, entities=True)
    outputs = [np.eye(3)[:, [0, 1, 2, 0]]]  # the tokens' classes are 0, 1, 2, 0
    whole = score_tags(task, outputs, WordTokens([[1, 2]], [[1, 2]]))
    assert whole == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    cut = score_tags(task, outputs, WordTokens([[1, 2, 1]], [[1, 2, -1]]))
    assert cut["precision"] == 1.0 and cut["recall"] == 0.5
    part = score_tags(task, outputs, WordTokens([[1, 2]], [[1, -1]]))
    assert part["f1"] == 0.0, "half an entity is none"
    assert score_tags(task, outputs, WordTokens([[0]], [[0]])) == dict.fromkeys(task.metrics), "nothing to measure"


def test_scores_of_any_number_of_labels_are_those_of_their_definitions():
    labels = np.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    outputs = np.array([[2.0, -1, -1], [1, -3, -2], [-1, -1, -0.5]])
    found = scores(("accuracy", "f1_micro", "f1_macro"), outputs, labels)
    assert found == pytest.approx({"accuracy": 2 / 3, "f1_micro": 0.8, "f1_macro": 0.5})
    assert scores(("f1_micro",), outputs[2:], labels[2:]) == {"f1_micro": None}
    one, never = np.array([[1.0], [0.0], [0.0], [1.0]]), -np.ones((4, 1))
    assert scores(("f1_micro", "f1_macro"), never, one) == {"f1_micro": 0.0, "f1_macro": 0.0}
    found = scores(("accuracy", "f1_micro", "f1_macro"), np.array([[1.0], [1.0], [-1.0], [-1.0]]), one)
    assert found == {"accuracy": 0.5, "f1_micro": 0.5, "f1_macro": 0.5}, "of the one label, one of two each way"


def test_soft_targets_of_labels_are_the_divergence_of_their_bernoullis():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, dtype=torch.float64).mul(3).unbind()
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    outputs = SimpleNamespace(logits=student.float())
    loss = soft_target_loss(outputs, teacher.float(), temperature=2.0, regression=False, multi_label=True)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    extreme = torch.tensor([80.0, -80.0], requires_grad=True)
    bernoulli_kl(extreme, torch.tensor([-80.0, 80.0]), 1.0).backward()
    assert torch.isfinite(extreme.grad).all() and float(bernoulli_kl(extreme, extreme, 1.0)) == 0


def test_soft_targets_of_words_are_the_mean_over_labeled_tokens_alone():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3), torch.randn(2, 3, 5)  # the teacher's tokens are the last axis
    labels = torch.tensor([[-100, 1, -100, 0, -100], [-100, 2, -100, -100, -100]])
    teacher[1, :, 3:] = float("-inf")  # padding
    found = soft_target_loss(SimpleNamespace(logits=student), teacher, temperature=1.0, regression=False, labels=labels)
    p = [teacher[b, :, t].double().softmax(0) for b, t in ((0, 1), (0, 3), (1, 1))]
    q = [student[b, t].double().softmax(0) for b, t in ((0, 1), (0, 3), (1, 1))]
    expected = sum((a * (a / b).log()).sum() for a, b in zip(p, q, strict=True)) / 3
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_student_of_tagged_words_is_trained_beside_its_teacher_and_saved(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.conll").write_text("say O\nAda B-person\nLovelace I-person\n\nsay O\nRome B-place\n")
    (tmp_path / "say.yaml").write_text("kind: token-classification\n")
    encoder, task = str(save_encoder("bert", tmp_path / "encoder")), find_task(str(tmp_path / "say.yaml"))
    options = {"points": [FinetuneConfig(epochs=1)], "seeds": [0], "report_to": ()}
    teacher = runs.finetune(task, encoder, tmp_path / "teacher", **options)
    student = runs.finetune(task, encoder, tmp_path / "student", teachers=[teacher["export"]], **options)
    [seed] = student["seeds"]
    assert {name: seed[name] for name in ("f1", "precision", "recall")} == student["metrics"] and student[
        "examples"
    ] == {"train": 2, "dev": 2}
    config = json.loads((tmp_path / "student" / "seed=0" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and config["finetuning_task"] == "say"
    assert list(config["id2label"].values()) == ["O", "B-person", "I-person", "B-place", "I-place"]
