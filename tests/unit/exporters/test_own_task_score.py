"""Test that an exported model is scored on the dev set of a user's own task."""

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from ds_distill.exporters.model import load_source
from ds_distill.exporters.own_task_score import is_own_data, own_dev_set
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder

TAGS = ("I-place", "O", "B-place")


def folder_with(tmp_path, auto, labels, **config):
    """Return the folder of a tiny model with this head and these labels."""
    save_encoder("bert", tmp_path)
    names = dict(enumerate(labels))
    model = auto.from_pretrained(tmp_path, id2label=names, label2id={name: i for i, name in names.items()}, **config)
    model.save_pretrained(tmp_path)
    return load_source(str(tmp_path))


def answer(labels, names):
    """Return a runner that gives each row the outputs of its labels, by name, in the model's order."""
    rows = iter(labels)

    def run(inputs):
        count = len(inputs["input_ids"])
        return [np.stack([np.array([[n == label for n in names] for label in next(rows)]) for _ in range(count)]) * 1.0]

    return run


def test_tags_are_scored_in_the_models_own_order_of_labels(tmp_path):
    source = folder_with(tmp_path / "model", AutoModelForTokenClassification, TAGS)
    data = tmp_path / "dev.conll"
    data.write_text("in O\nNew B-place\nYork I-place\n\u200b O\n")  # the last word has no token
    dev = own_dev_set(source, str(data))
    first = dev.rows[0]["input_ids"]
    assert is_own_data(source, str(data)) and source.head == "token-classification"
    right = ["O"] * len(first)
    offsets = source.reader("in New York", return_offsets_mapping=True)["offset_mapping"]
    for start, tag in ((3, "B-place"), (7, "I-place")):
        right[next(i for i, (a, b) in enumerate(offsets) if a == start and b > a)] = tag
    assert dev.score(answer([right], TAGS), "score") == {"f1": 1.0}
    assert dev.score(answer([["O"] * len(first)], TAGS), "score") == {"f1": 0.0}
    data.write_text("in O\nNew B-town\n")
    with pytest.raises(UserError, match="dev.conll, line 2: label 'B-town': not one of `labels`"):
        own_dev_set(source, str(data))


def test_a_task_with_any_number_of_labels_has_its_own_metric(tmp_path):
    source = folder_with(
        tmp_path / "model", AutoModelForSequenceClassification, ("b", "a"), problem_type="multi_label_classification"
    )
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text('text,tags\none,"a,b"\ntwo,b\nthree,\n')
    (tmp_path / "mine.yaml").write_text("kind: multi-label\ntext: text\nlabel: tags\nmetric: accuracy\n")
    dev = own_dev_set(source, str(tmp_path / "mine.yaml"))
    assert dev.about["columns"] == ["text"] and dev.about["examples"] == 3
    outputs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])  # b and a; b; a, where there is none
    assert dev.score(lambda inputs: [outputs], "score") == {"accuracy": pytest.approx(2 / 3)}
    (tmp_path / "mine.yaml").write_text("kind: token-classification\ndata: dev.csv\ndev_share: 0.5\n")
    with pytest.raises(UserError, match="a task for a model with the head token-classification, but .* has the head"):
        own_dev_set(source, str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("problem_type", "labels", "kind", "wanted"),
    [
        ("multi_label_classification", ("a", "b"), "single-label", "multi-label"),
        ("single_label_classification", ("a", "b"), "multi-label", "single-label"),
        ("single_label_classification", ("1", "2"), "regression", "single-label"),
        ("regression", ("x",), "single-label", "regression"),
    ],
)
def test_a_task_of_another_kind_is_refused(tmp_path, problem_type, labels, kind, wanted):
    source = folder_with(tmp_path / "model", AutoModelForSequenceClassification, labels, problem_type=problem_type)
    rows = "1,2" if kind == "regression" else "a,b"
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join(f"t,{row}\n" for row in rows.split(",")))
    (tmp_path / "mine.yaml").write_text(f"kind: {kind}\ntext: text\nlabel: label\n")
    with pytest.raises(UserError, match=f"was fine-tuned on a {wanted} task, and this is none; give the task of the"):
        own_dev_set(source, str(tmp_path / "mine.yaml"))
