"""The scores reported for a folder are those of transformers' own pipeline, whatever its tokenizer and its labels."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from ds_distill.exporters.model import load_source
from ds_distill.exporters.parity import SAMPLE, torch_runner
from ds_distill.exporters.task_score import dev_score
from ds_distill.finetune import runs
from ds_distill.finetune import trainer as trainer_module
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.squad import questions_in
from ds_distill.tasks.squad_answers import postprocess_spans, squad_scores
from ds_distill.tasks.squad_spans import make_spans
from ds_distill.utils.errors import UserError
from tests.tiny import FAMILIES, POSITIONS, save_encoder

LENGTH = 24
QUICK = FinetuneConfig(epochs=1, batch_size=16, max_length=LENGTH, learning_rate=3e-3, precision="fp32")
ALL_NAMES = ["input_ids", "token_type_ids", "attention_mask"]
SETTINGS = {
    "as it came": {},
    "padded left": {"padding_side": "left"},
    "cut left": {"truncation_side": "left"},
    "with token types": {"model_input_names": ALL_NAMES},
    "without token types": {"model_input_names": ["input_ids", "attention_mask"]},
    "ids alone, after the mask": {"model_input_names": ["attention_mask", "input_ids"]},
    "short": {"model_max_length": 9},
    "endless": {"model_max_length": 10**30},
    "cased": {"do_lower_case": False},
}
WORDS = SAMPLE.read_text().split()
RANDOM = np.random.default_rng(0)


def some_text(least: int, most: int) -> str:
    start = int(RANDOM.integers(0, len(WORDS) - most))
    words = WORDS[start : start + int(RANDOM.integers(least, most))]
    return " ".join(word.upper() if RANDOM.random() < 0.3 else word for word in words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One encoder's folder per family."""
    root = tmp_path_factory.mktemp("encoders")
    return {family: save_encoder(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One folder per task; a third of the texts are longer than what is read of them."""
    root = tmp_path_factory.mktemp("tasks")
    for name in ("sst2", "mrpc", "stsb", "mnli"):
        (root / name).mkdir()
        task = get_task(name)
        for split in ("train", *task.validation):
            rows = [
                {text: some_text(2, 4) if i % 3 else some_text(10, 40) for text in task.texts}
                | {"label": i % len(task.labels) if task.labels else 5 * float(RANDOM.random())}
                for i in range(36 if split == "train" else 24)
            ]
            (root / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def change(source, target, what: str):
    """Copy an encoder's folder with other settings of its tokenizer."""
    shutil.copytree(source, target)
    file = target / "tokenizer_config.json"
    if what == "in tokenizer.json":
        state = json.loads((target / "tokenizer.json").read_text())
        state["truncation"] = {"direction": "Left", "max_length": 12, "strategy": "LongestFirst", "stride": 3}
        state["padding"] = {
            "strategy": {"Fixed": 40},
            "direction": "Left",
            "pad_to_multiple_of": 8,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
        (target / "tokenizer.json").write_text(json.dumps(state))
        config = json.loads(file.read_text())  # its sides would take precedence
        file.write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("_side")}))
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | SETTINGS[what]))
    return target


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def piped(folder, task, rows, **how) -> tuple[list[str], np.ndarray]:
    """Return a pipeline's label and the numbers of all labels [examples, labels] for each example."""
    pipe = pipeline("text-classification", model=str(folder), device="cpu")
    texts = [
        row[task.texts[0]] if len(task.texts) == 1 else {"text": row[task.texts[0]], "text_pair": row[task.texts[1]]}
        for row in rows
    ]
    names = [pipe.model.config.id2label[i] for i in range(pipe.model.config.num_labels)]
    every = [
        {part["label"]: part["score"] for part in answer}
        for answer in pipe(texts, truncation=True, top_k=None, function_to_apply="none", **how)
    ]
    return [max(answer, key=answer.get) for answer in every], np.array(
        [[answer[name] for name in names] for answer in every]
    )


def noted(run, outputs: list):
    """Return `run` in a form that keeps its answers in `outputs`."""
    return lambda inputs: outputs.append(run(inputs)) or outputs[-1]


# Each setting runs with BERT and with every second other family; the tasks take turns. The quick tests
# have each setting once.
CASES = [
    pytest.param(
        *(family, what, ("sst2", "mrpc", "stsb", "mnli")[(i + j) % 4]),
        marks=() if family == ("bert", "roberta")[j % 2] else pytest.mark.long,
    )
    for i, family in enumerate(FAMILIES)
    for j, what in enumerate([*SETTINGS, "in tokenizer.json"])
    if family == "bert" or (i + j) % 2
]


@pytest.mark.parametrize(("family", "what", "name"), CASES)
def test_a_pipeline_of_the_saved_folder_scores_what_is_reported(
    folders, data, tmp_path, monkeypatch, capsys, family, what, name
):
    outputs, real = {}, trainer_module.predict
    monkeypatch.setattr(
        trainer_module, "predict", lambda *given: outputs.setdefault(given[-1].split(", ")[-1], real(*given))
    )
    task, encoder = get_task(name), change(folders[family], tmp_path / "encoder", what)
    summary = runs.finetune(task, str(encoder), tmp_path / "out", points=[QUICK], seeds=[0], data=str(data / name))
    assert set(outputs) == set(task.validation)
    for number, split in enumerate(task.validation):
        rows = read_rows(data / name / f"{split}.jsonl")
        labels, best = [row["label"] for row in rows], piped(summary["export"], task, rows)
        assert np.abs(best[1] - np.stack(outputs[split])).max() < 1e-4
        in_batches = piped(summary["export"], task, rows, batch_size=7, padding=True)[1]
        assert np.abs(best[1] - in_batches).max() < 1e-4, "what stands beside a text does not matter"
        prefix = "" if number == 0 else "mismatched_"
        if name == "stsb":
            assert summary["pearson"] == pytest.approx(pearsonr(best[1][:, 0], labels)[0], abs=1e-5)
            assert summary["metrics"]["spearman"] == pytest.approx(spearmanr(best[1][:, 0], labels)[0], abs=1e-3)
            continue
        predicted = [task.labels.index(label) for label in best[0]]
        assert summary["metrics"][f"{prefix}accuracy"] == np.mean(
            [a == b for a, b in zip(predicted, labels, strict=True)]
        )
        if name == "mrpc":
            assert summary["f1"] == pytest.approx(f1_score(labels, predicted))
    # An export of the folder gives the same score.
    source = load_source(summary["export"])
    assert dev_score(source, torch_runner(source), data / name / f"{task.validation[0]}.jsonl", "dev") == {
        summary["metric"]: pytest.approx(summary[summary["metric"]], abs=1e-5)
    }
    assert summary["settings"]["max_length"] == LENGTH and summary["truncated"]["dev"] >= 6
    side = "left" if what in ("cut left", "in tokenizer.json") else "right"
    assert f"examples longer than {LENGTH} tokens are truncated on the {side}" in capsys.readouterr().err
    saved = AutoTokenizer.from_pretrained(summary["export"])
    assert saved.model_max_length == LENGTH and saved.padding_side == "right"
    assert ("token_type_ids" in saved("a", "b")) == (family == "bert"), "what the model takes"


def test_a_folder_from_elsewhere_is_read_as_its_tokenizer_says(folders, tmp_path):
    """It is exported with labeled examples and not fine-tuned here: its own maximum length, sides and inputs hold."""
    rows = [{"text": some_text(2, 40), "label": i % 3} for i in range(30)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for what in ("as it came", "cut left", "padded left", "without token types", "ids alone, after the mask", "short"):
        folder = change(folders["bert"], tmp_path / what, what)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["model_max_length"] = min(settings["model_max_length"], POSITIONS)  # otherwise a pipeline fails
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        torch.manual_seed(3)
        config = BertConfig.from_pretrained(folder, num_labels=3)
        model = BertForSequenceClassification.from_pretrained(folder, config=config)
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(folder)
        best, numbers = piped(folder, get_task("imdb"), rows)
        source, outputs = load_source(str(folder)), []
        score = dev_score(source, noted(torch_runner(source), outputs), tmp_path / "dev.jsonl", "dev")
        assert np.abs(np.concatenate([out[0] for out in outputs]) - numbers).max() < 1e-4
        assert score["accuracy"] == np.mean(
            [label == f"LABEL_{row['label']}" for label, row in zip(best, rows, strict=True)]
        )


def test_one_output_is_squashed_where_a_pipeline_does_that(folders, tmp_path):
    """Cross-encoders have num_labels 1 and no problem_type."""
    rows = [{"sentence1": some_text(2, 9), "sentence2": some_text(2, 9), "label": float(i % 6)} for i in range(20)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in (None, "regression"):
        folder = tmp_path / str(kind)
        shutil.copytree(folders["bert"], folder)
        config = BertConfig.from_pretrained(folder, num_labels=1, problem_type=kind)
        model = BertForSequenceClassification.from_pretrained(folder, config=config)
        torch.nn.init.normal_(model.classifier.weight, std=2)
        model.save_pretrained(folder)
        (tokenizer := AutoTokenizer.from_pretrained(folder)).model_max_length = POSITIONS
        tokenizer.save_pretrained(folder)
        pipe = pipeline("text-classification", model=str(folder), device="cpu")
        scores = [
            answer["score"]
            for answer in pipe([{"text": row["sentence1"], "text_pair": row["sentence2"]} for row in rows])
        ]
        source = load_source(str(folder))
        pearson = dev_score(source, torch_runner(source), tmp_path / "dev.jsonl", "dev")["pearson"]
        assert pearson == pytest.approx(pearsonr(scores, [row["label"] for row in rows])[0], abs=1e-5)


CASE = (
    str,
    str.upper,
    str.capitalize,
    lambda name: name.replace("_", " "),
    lambda name: f" {name} ",
    lambda name: name[:-1],
)
NUMBERS = (lambda k: k, float, str, lambda k: f"{k}.0", lambda k: f"LABEL_{k}", lambda k: f"label {k}")
FOREIGN = {"sst2": ("否定的", "肯定的"), "mnli": ("Folgerung", "Neutral?", "Widerspruch")}


@pytest.fixture(scope="module")
def classifier(folders):
    """A folder's source whose labels are set by each test; its outputs do not matter."""
    return load_source(str(folders["bert"]), "classification", for_speed=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_labels_are_understood_in_every_order_case_and_form(classifier, tmp_path_factory, draw):
    task = get_task(draw.draw(st.sampled_from(["sst2", "mrpc", "mnli", "rte", "wnli"])))
    order = draw.draw(st.permutations(range(len(task.labels))))  # the task's class for which each output stands
    numbered, known = draw.draw(st.booleans()), draw.draw(st.booleans())
    write = draw.draw(
        st.sampled_from(
            [lambda k: f"LABEL_{k}", str] if numbered else [lambda k, case=case: case(task.labels[k]) for case in CASE]
        )
    )
    config = classifier.model.config
    config.id2label, config.finetuning_task = dict(enumerate(map(write, order))), task.name if known else None
    gold = draw.draw(st.lists(st.integers(0, len(task.labels) - 1), min_size=6, max_size=12))
    # Without a task, a number is one of the model's classes, by its name or place.
    forms = NUMBERS if known or numbered else ()
    form = draw.draw(
        st.sampled_from(
            [*forms, *([] if numbered and not known else [lambda k, case=case: case(task.labels[k]) for case in CASE])]
        )
    )
    file = tmp_path_factory.mktemp("labels") / "dev.jsonl"
    texts = dict.fromkeys(task.texts, "a film")
    file.write_text("\n".join(json.dumps(texts | {"label": form(k)}) for k in gold))
    chosen = draw.draw(st.lists(st.integers(0, len(order) - 1), min_size=len(gold), max_size=len(gold)))
    outputs = iter(np.eye(len(order))[chosen])
    score = dev_score(classifier, lambda inputs: [np.array([next(outputs) for _ in inputs["input_ids"]])], file, "dev")
    predicted = [order[k] for k in chosen]  # a pipeline's answers, as classes of the task
    if known and task.name == "mrpc":
        assert score == {"f1": pytest.approx(f1_score(gold, predicted)) if 1 in gold + predicted else None}
    else:
        assert score == {"accuracy": np.mean([a == b for a, b in zip(gold, predicted, strict=True)])}


@pytest.mark.parametrize("name", FOREIGN)
def test_labels_in_another_language_are_the_models_own(classifier, tmp_path, capsys, name):
    """Nobody can tell which of them is the task's first, so names and places count, and that is reported."""
    config, task, names = classifier.model.config, get_task(name), FOREIGN[name]
    config.id2label, config.finetuning_task = dict(enumerate(names)), name
    texts = dict.fromkeys(task.texts, "a film")
    for labels in (names, range(len(names)), [label.upper() for label in names]):
        (tmp_path / "dev.jsonl").write_text(
            "\n".join(json.dumps(texts | {"label": label}, ensure_ascii=False) for label in labels)
        )
        score = dev_score(classifier, lambda inputs: [np.eye(len(names))], tmp_path / "dev.jsonl", "dev")
        assert score == {"accuracy": 1.0} and f"are not those of {name}" in capsys.readouterr().err
    (tmp_path / "dev.jsonl").write_text(json.dumps(texts | {"label": task.labels[0]}))
    with pytest.raises(UserError, match="not one of the model's labels"):
        dev_score(classifier, lambda inputs: [np.eye(len(names))], tmp_path / "dev.jsonl", "dev")


@pytest.mark.parametrize(
    ("family", "what"),
    [
        pytest.param(family, what, marks=() if (j + (family == "roberta")) % 2 else pytest.mark.long)
        for family in ("bert", "roberta")
        for j, what in enumerate(("as it came", "padded left", "cut left", "without token types"))
    ],
)
def test_answers_of_the_saved_folder_score_what_is_reported(folders, tmp_path, family, what):
    """transformers 5 has no pipeline for questions.

    AutoModel loads the folder, with its tokenizer's windows and SQuAD's rules.
    """
    (tmp_path / "squad_v2").mkdir()
    for split in ("train", "validation"):
        rows = []
        for i in range(16):
            context = some_text(20, 60)
            answer = context.split()[i % 5 + 3]
            answers = (
                {"text": [answer], "answer_start": [context.index(answer)]}
                if i % 4
                else {"text": [], "answer_start": []}
            )
            rows.append({"id": str(i), "question": "which word is it?", "context": context, "answers": answers})
        (tmp_path / "squad_v2" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task, encoder = get_task("squad_v2"), change(folders[family], tmp_path / "encoder", what)
    point = FinetuneConfig(epochs=1, batch_size=16, max_length=48, learning_rate=3e-3, precision="fp32")
    summary = runs.finetune(
        task, str(encoder), tmp_path / "out", points=[point], seeds=[0], data=str(tmp_path / "squad_v2")
    )
    tokenizer, model = (
        AutoTokenizer.from_pretrained(summary["export"]),
        AutoModelForQuestionAnswering.from_pretrained(summary["export"]).eval(),
    )
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (48, "right")
    questions = questions_in(task, tmp_path / "squad_v2" / "validation.jsonl")
    spans = make_spans(questions, tokenizer, tokenizer.model_max_length)
    starts, ends = [], []
    with torch.no_grad():
        for row in range(len(spans.question)):  # one by one, with the inputs that the tokenizer names
            out = model(**{name: torch.tensor([spans.inputs[name][row]]) for name in tokenizer.model_input_names})
            starts.append(out.start_logits[0].numpy())
            ends.append(out.end_logits[0].numpy())
    expected = squad_scores(questions, postprocess_spans(questions, spans, starts, ends))
    assert {**summary["metrics"], "threshold": None} == {**expected, "threshold": None}
    assert summary["metrics"]["threshold"] == pytest.approx(expected["threshold"], abs=1e-3)
    source = load_source(summary["export"])
    assert dev_score(source, torch_runner(source), tmp_path / "squad_v2" / "validation.jsonl", "dev") == {
        "f1": summary["f1"]
    }


def test_labels_of_a_test_split_are_no_score(folders, tmp_path):
    """The hub's test splits have -1 for every label."""
    source = load_source(str(folders["bert"]), "classification", for_speed=True)
    pair = {"sentence1": "a film", "sentence2": "a film"}
    for task, labels in (("stsb", {0: "LABEL_0"}), ("mrpc", {0: "LABEL_0", 1: "LABEL_1"})):
        source.model.config.id2label, source.model.config.finetuning_task = labels, task
        (tmp_path / "dev.jsonl").write_text("\n".join(json.dumps(pair | {"label": label}) for label in (1, -1)))
        with pytest.raises(UserError, match="label -1"):
            dev_score(source, torch_runner(source), tmp_path / "dev.jsonl", "dev")
