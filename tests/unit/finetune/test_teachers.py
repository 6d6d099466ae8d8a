"""Test the soft targets of one fine-tuned teacher and the mean of several."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune import predict as predict_module
from ds_distill.finetune import runs, teachers
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import encode_sets, load_data
from ds_distill.finetune.features import Collator
from ds_distill.finetune.predict import predict
from ds_distill.finetune.teachers import TaskTeachers
from ds_distill.losses.task_distillation import mean_soft_targets
from ds_distill.tasks.catalog import get_task
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder

WEIGHTS = (0.2, 0.5, 0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """model/ is an encoder, a/ and b/ are fine-tuned on rte/, whose examples have many lengths."""
    folder = tmp_path_factory.mktemp("teachers")
    save_encoder("bert", folder / "model")
    (folder / "rte").mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence1": "a word " * (1 + 3 * i % 7), "sentence2": "it is", "label": i % 2} for i in range(16)]
        (folder / "rte" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2)
        torch.nn.init.normal_(model.classifier.weight, std=3.0)
        model.save_pretrained(folder / name)
        load_tokenizer(folder / "model").save_pretrained(folder / name)
    return folder


def encode(world, length=0):
    task, tokenizer = get_task("rte"), load_tokenizer(world / "model")
    settings = FinetuneConfig(max_length=length)
    return encode_sets(load_data(task, str(world / "rte")), tokenizer, settings, 64).train, Collator(tokenizer)


def test_a_teachers_outputs_are_computed_once_for_what_it_reads(world, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(teachers, "predict", lambda *given: calls.append(1) or predict(*given))
    own, settings = TaskTeachers([str(world / "a")], get_task("rte")), FinetuneConfig()
    sets = [encode(world, length) for length in (8, 0, 8)]
    kept = [own.make_soft_targets(features, collator, settings, tmp_path) for features, collator in sets]
    assert len(calls) == len(list(tmp_path.iterdir())) == 2, "once each"
    (tmp_path / "new").touch()
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1, "as the umask gives it, for the group too"
    assert all(np.array_equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    longest = int(np.argmax(sets[1][0].lengths))
    assert not np.allclose(kept[0][longest], kept[1][longest], atol=1e-6)


@pytest.mark.parametrize("head", ["classes", "answers"])
def test_outputs_that_are_stopped_go_on_where_they_were(world, tmp_path, monkeypatch, head):
    monkeypatch.setattr(predict_module, "SAVE_SECONDS", 0.0)
    features, collator = encode(world)
    if head == "classes":
        model = TaskTeachers([str(world / "a")], get_task("rte")).first
    else:
        model = AutoModelForQuestionAnswering.from_pretrained(world / "model").eval()
    expected, calls = predict(model, features, collator, 3, ""), []

    def stop_once(model, args, inputs):
        calls.append(inputs["input_ids"])
        if len(calls) == 4:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop_once, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        predict(model, features, collator, 3, "", tmp_path / "parts")
    (tmp_path / "parts" / "9.partial").write_bytes(b"torn")
    outputs = predict(model, features, collator, 3, "", tmp_path / "parts")
    assert sum(map(len, calls)) == 16 + 3, "the batch that was stopped is the only one that is computed twice"
    assert all(np.array_equal(a, b) and a.shape == b.shape for a, b in zip(outputs, expected, strict=True))


def test_several_teachers_give_the_mean_of_their_probabilities(world, tmp_path):
    paths, settings = [str(world / name) for name in "ab"], FinetuneConfig(temperature=3.0, teacher_weights=[1.0, 3.0])
    features, collator = encode(world)
    found = TaskTeachers(paths, get_task("rte")).make_soft_targets(features, collator, settings, tmp_path)
    alone = [
        TaskTeachers([path], get_task("rte")).make_soft_targets(features, collator, settings, tmp_path)
        for path in paths
    ]
    for row, *each in zip(found, *alone, strict=True):
        a, b, mean = (torch.tensor(values).double().div(3).softmax(-1) for values in (*each, row))
        torch.testing.assert_close(mean, 0.25 * a + 0.75 * b, rtol=1e-5, atol=1e-6)
    spread = [abs(a[0] - b[0]) for a, b in zip(*alone, strict=True)]
    assert max(spread) > 1, "the teachers differ"


@pytest.mark.parametrize("shape, class_dim", [((5,), -1), ((2, 9), -1), ((5, 9), 0)])
def test_the_mean_is_of_probabilities_at_the_temperature(shape, class_dim):
    outputs = np.random.default_rng(0).normal(scale=8, size=(3, *shape)).astype(np.float32)
    mean = mean_soft_targets(outputs, WEIGHTS, temperature=2.0, class_dim=class_dim)
    softmax = lambda x: torch.tensor(x).double().div(2).softmax(class_dim)  # noqa: E731
    expected = sum(weight * softmax(output) for weight, output in zip(WEIGHTS, outputs, strict=True))
    torch.testing.assert_close(softmax(mean), expected, rtol=1e-5, atol=1e-7)
    assert mean.dtype == np.float32 and mean.shape == shape


def test_the_mean_of_one_teacher_among_several_is_that_teacher():
    outputs = np.random.default_rng(0).normal(scale=60, size=(3, 4)).astype(np.float32)
    for options in ({}, {"multi_label": True}, {"regression": True}):
        mean = mean_soft_targets(outputs, (0.0, 1.0, 0.0), temperature=1.0, **options)
        shift = mean - outputs[1]  # a softmax does not change when a number is added to all of its outputs
        np.testing.assert_allclose(shift, np.full(4, 0.0 if options else shift[0]), atol=1e-4)


def test_decisions_and_numbers_have_means_of_their_own():
    outputs = np.random.default_rng(0).normal(scale=4, size=(3, 6)).astype(np.float32)
    sigmoid = lambda x: torch.tensor(x).double().div(2).sigmoid()  # noqa: E731
    mean = mean_soft_targets(outputs, WEIGHTS, temperature=2.0, multi_label=True)
    expected = sum(weight * sigmoid(output) for weight, output in zip(WEIGHTS, outputs, strict=True))
    torch.testing.assert_close(sigmoid(mean), expected, rtol=1e-5, atol=1e-7)
    numbers = mean_soft_targets(outputs, WEIGHTS, temperature=2.0, regression=True)
    np.testing.assert_allclose(numbers, np.average(outputs, axis=0, weights=WEIGHTS), rtol=1e-5)


def test_a_student_of_several_teachers_is_trained_and_found_again(world, tmp_path):
    options = {
        "points": [FinetuneConfig(epochs=1, temperature=temperature) for temperature in (1.0, 2.0)],
        "seeds": [0],
        "data": str(world / "rte"),
        "report_to": (),
    }
    both = [str(world / name) for name in "ab"]
    summary = runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "s", teachers=both, **options)
    assert summary["teacher"] == both and len(summary["grid"]) == 2
    again = runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "s", teachers=both, **options)
    assert again["export"] == summary["export"]
    with pytest.raises(UserError, match="holds another run .teacher was"):
        runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "s", teachers=both[:1], **options)
