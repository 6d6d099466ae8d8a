"""Test the tasks, their data, scores and losses, by hand and against scikit-learn and scipy."""

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from ds_distill.finetune.config import FinetuneConfig, expand_grid
from ds_distill.finetune.results import make_summary
from ds_distill.losses.task_distillation import temperature_kl
from ds_distill.tasks.catalog import TASKS, get_task
from ds_distill.tasks.examples import load_examples, read_examples, split_files
from ds_distill.tasks.metrics import best_threshold, exact_match, median, normalize_answer, overlap_f1, scores
from ds_distill.tasks.squad import load_questions
from ds_distill.utils.errors import UserError


def logits(classes):
    return np.eye(max(classes) + 1)[list(classes)]


def test_scores_by_hand():
    labels, predicted = (
        np.array([1, 1, 1, 0, 0, 1]),
        logits([1, 1, 0, 0, 1, 1]),
    )  # 3 true positives, 1 false positive, 1 true negative, 1 false negative
    metrics = scores(("accuracy", "f1", "matthews"), predicted, labels)
    assert metrics["accuracy"] == pytest.approx(4 / 6) and metrics["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert metrics["matthews"] == pytest.approx((3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2))
    numbers = np.array([[1.0], [2.0], [3.0], [10.0]])
    metrics = scores(("pearson", "spearman"), numbers, np.array([1.0, 2.0, 3.0, 4.0]))
    assert metrics["spearman"] == pytest.approx(1.0) and metrics["pearson"] == pytest.approx(14 / math.sqrt(50 * 5))


def test_a_score_over_nothing_is_not_measured():
    """A constant has no correlation, a single class no contrast, and no examples have no score."""
    for names, outputs, labels in (
        (("pearson", "spearman"), np.zeros((3, 1)), np.array([1.0, 2.0, 3.0])),
        (("pearson", "spearman"), np.eye(3)[:, :1], np.ones(3)),
        (("pearson", "spearman"), np.ones((1, 1)), np.ones(1)),
        (("matthews", "f1"), np.eye(2)[[0, 0, 0]], np.zeros(3, int)),
        (("accuracy", "f1", "matthews", "pearson"), np.zeros((0, 2)), np.zeros(0)),
    ):
        assert scores(names, outputs, labels) == dict.fromkeys(names)
    always = scores(("accuracy", "f1", "matthews"), np.eye(2)[[0, 0, 0, 0]], np.array([0, 1, 0, 0]))
    assert always == {"accuracy": 0.75, "f1": 0.0, "matthews": 0.0}, (
        "wrong is not unmeasured: GLUE's own 0 for one that always says the same"
    )
    assert (
        median([0.3, None, 0.5]) == 0.3
        and median([None, 0.5]) is None
        and median([0.1, 0.2]) == pytest.approx(0.15)
        and median([None]) is None
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(0, 1000))
def test_scores_are_the_libraries(size, seed):
    g = np.random.default_rng(seed)
    labels, outputs = g.integers(0, 2, size), g.normal(size=(size, 2))
    metrics = scores(("accuracy", "f1", "matthews"), outputs, labels)
    predicted = outputs.argmax(1)
    one_class = len(set(labels)) == 1
    assert metrics["matthews"] == (None if one_class else matthews_corrcoef(labels, predicted))
    assert metrics["f1"] == (f1_score(labels, predicted) if 1 in labels or 1 in predicted else None)
    assert metrics["accuracy"] == (predicted == labels).mean()
    values, gold = g.normal(size=(size, 1)), g.normal(size=size)
    metrics = scores(("pearson", "spearman"), values, gold)
    assert metrics == {"pearson": pearsonr(values[:, 0], gold)[0], "spearman": spearmanr(values[:, 0], gold)[0]}


def test_squads_rules_by_hand():
    assert normalize_answer("The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    assert exact_match("the tower", ["A Tower."]) == 1 and exact_match("tower", ["towers"]) == 0
    assert (
        exact_match("", []) == 1 and exact_match("x", []) == 0 and overlap_f1("", []) == 1 and overlap_f1("x", []) == 0
    )
    assert overlap_f1("in the old town", ["the old town hall"]) == pytest.approx(
        2 * (2 / 3) * (2 / 3) / (4 / 3)
    )  # "old" and "town" match, of three words each
    assert overlap_f1("new new york", ["new york"]) == pytest.approx(2 * (2 / 3) * 1 / (5 / 3))
    assert overlap_f1("b", ["a b", "b"]) == 1.0
    assert overlap_f1("the", ["A"]) == overlap_f1("the", ["A", "b"]) == 0.0, (
        "no word is shared, as in the script of 1.1"
    )


def test_the_threshold_of_no_answer_is_the_best():
    score, answerable, nothing = [1.0, 0.5, 0.0, 0.0], [True, True, False, False], [-5.0, 1.0, 0.0, 3.0]
    best, threshold = best_threshold(score, answerable, nothing)
    every = [
        sum((s if n <= t else 0.0) if a else float(n > t) for s, a, n in zip(score, answerable, nothing, strict=True))
        / 4
        for t in (-math.inf, *nothing)
    ]
    assert best == max(every) == 0.75 and threshold == -5.0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.4, 1.0]), st.booleans(), st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.inf])),
        min_size=1,
        max_size=9,
    )
)
def test_the_best_threshold_is_one_that_can_be_set(rows):
    """Questions of equal odds are either all answered or all not; one without any answer text stays unanswered."""
    score, answerable, nothing = zip(*rows, strict=True)
    score = [s if has and odd < math.inf else 0.0 for s, has, odd in rows]

    def at(limit):
        return sum(
            (s if odd <= limit else 0.0) if has else float(odd > limit or odd == math.inf)
            for s, has, odd in zip(score, answerable, nothing, strict=True)
        ) / len(rows)

    best, threshold = best_threshold(list(score), list(answerable), list(nothing))
    limits = (-math.inf, *(odd for odd in nothing if odd < math.inf))
    assert best == pytest.approx(max(map(at, limits))) == pytest.approx(at(threshold)) and threshold < math.inf


def test_the_soft_loss_and_its_gradient_are_the_closed_form():
    g = torch.Generator().manual_seed(0)
    z, t = (torch.randn(5, 2, 7, generator=g, dtype=torch.float64) * 3 for _ in range(2))
    t[1, :, 4:], t[3, 0, 6:] = float("-inf"), float("-inf")  # padding
    z = z.float().requires_grad_()
    loss = temperature_kl(z, t.float(), 2.0)
    loss.backward()
    gone = t.isinf()
    p, q = (t / 2).softmax(-1), z.detach().double().masked_fill(gone, float("-inf")).div(2).softmax(-1)
    expected = 4 * (p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log())).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (
        torch.allclose(z.grad.double(), 2 * (q - p) / 10, atol=1e-7) and (z.grad[gone] == 0).all()
    )  # T · (q − p) per row, over 10 rows


ROW = {
    "jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "csv": lambda rows: "\n".join([",".join(rows[0]), *(",".join(f'"{v}"' for v in row.values()) for row in rows)]),
    "tsv": lambda rows: "\n".join(["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]),
}


@pytest.mark.parametrize("kind", ROW)
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_every_kind_say_the_same(tmp_path, kind, packed):
    rows = [
        {"sentence1": "one, two", "sentence2": "it 's \"quoted", "label": 1, "idx": 0},
        {"sentence1": "ü", "sentence2": "b", "label": 0, "idx": 1},
    ]
    if kind == "csv":
        rows[0]["sentence2"] = "it 's quoted"
    text = ROW[kind](rows).encode()
    (tmp_path / f"train.{kind}{'.gz' if packed else ''}").write_bytes(gzip.compress(text) if packed else text)
    examples = load_examples(get_task("rte"), "train", str(tmp_path))
    assert examples.texts == [["one, two", "ü"], [rows[0]["sentence2"], "b"]] and examples.labels == [1, 0]


@pytest.mark.parametrize(
    ("task", "name", "text", "texts", "labels"),
    [
        ("cola", "dev.tsv", "gj04\t1\t\tA book.\nks08\t0\t*\tBook a.\n", [["A book.", "Book a."]], [1, 0]),
        ("sst2", "dev.tsv", "sentence\tlabel\nfine film\t1\n", [["fine film"]], [1]),
        (
            "mrpc",
            "dev.tsv",
            'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\tHe said "no\n\t'.rstrip("\t") + "0\t7\t8\ta\tb\n",
            None,
            None,
        ),
        (
            "mrpc",
            "dev.tsv",
            '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\tHe said "no\tHe did\n0\t7\t8\ta\tb\n',
            [['He said "no', "a"], ["He did", "b"]],
            [1, 0],
        ),
        (
            "stsb",
            "dev.tsv",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
            "0\tg\tf\ty\t1\tn\tn\tA\tB\t3.8\n",
            [["A"], ["B"]],
            [3.8],
        ),
        (
            "qqp",
            "dev.tsv",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tHow?\t0\n",
            [["Why?"], ["How?"]],
            [0],
        ),
        (
            "mnli",
            "dev_matched.tsv",
            "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
            "0\t1\t1n\tg\tA\tB\tneutral\tneutral\n",
            [["A"], ["B"]],
            [1],
        ),
        ("rte", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tnot_entailment\n", [["A"], ["B"]], [1]),
        ("qnli", "dev.tsv", "index\tquestion\tsentence\tlabel\n0\tQ\tS\tnot_entailment\n", [["Q"], ["S"]], [1]),
        ("wnli", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n", [["A"], ["B"]], [1]),
    ],
)
def test_glues_own_layout(tmp_path, task, name, text, texts, labels):
    (tmp_path / name).write_text(text)
    [file] = split_files(tmp_path, get_task(task).validation[0])
    if texts is None:  # a broken line
        with pytest.raises(UserError, match=r"dev\.tsv, line 2: 4 columns"):
            read_examples(get_task(task), file)
        return
    examples = read_examples(get_task(task), file)
    assert examples.texts == texts and examples.labels == labels


def test_squads_own_file_names(tmp_path):
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_text("{}")
    assert [split_files(tmp_path, split)[0].name for split in ("train", "validation")] == [
        "train-v1.1.json",
        "dev-v1.1.json",
    ]
    (tmp_path / "train-v2.0.json").write_text("{}")
    with pytest.raises(UserError, match="the folder contains train-v1.1.json, train-v2.0.json"):
        split_files(tmp_path, "train")


@pytest.mark.parametrize(
    ("task", "label", "number"),
    [
        *(("sst2", label, 0) for label in (0, 0.0, "0", "0.0", False, "False", "false", "LABEL_0")),
        *(("sst2", label, 0) for label in ("NEGATIVE", "Negative", " negative", "neg", "negativ")),
        *(("sst2", label, 1) for label in (1, 1.0, "1.0", True, "True", "TRUE", "positive", "POS", "label 1")),
        *(("mnli", label, 2) for label in ("CONTRADICTION", "contra", 2, "2", "LABEL_2")),
        *(("rte", label, 1) for label in ("not_entailment", "Not Entailment", "NOT-ENTAILMENT", 1)),
        ("rte", "ENTAILMENT", 0),
        *(("sst2", label, None) for label in (2, -1, "2", 0.5, "0.5", "", "good", None, [0], "nan", "1 0", "ne")),
        *(("rte", label, None) for label in (True, "false", "not")),
        ("mnli", True, None),
        ("mrpc", "equi", 1),
    ],
)
def test_a_label_is_understood_however_it_is_written(tmp_path, task, label, number):
    file, texts = tmp_path / "dev.jsonl", dict.fromkeys(get_task(task).texts, "a text")
    file.write_text(json.dumps(texts | {"label": label}))
    if number is None:
        with pytest.raises(UserError, match=f"line 1: label .*: not a label of {task}, whose labels are 0 "):
            read_examples(get_task(task), file)
        return
    assert read_examples(get_task(task), file).labels == [number]
    if isinstance(label, str | float | bool):
        file = tmp_path / "dev.csv"
        file.write_text(",".join([*texts, "label"]) + "\n" + ",".join([*texts.values(), str(label)]) + "\n")
        assert read_examples(get_task(task), file).labels == [number], "csv has everything as text"


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if not task.spans and not task.tokens])
def test_further_columns_change_nothing(tmp_path, task):
    task = get_task(task)
    rows = [{name: f"{name} {i}" for name in task.texts} | {"label": i % max(len(task.labels), 2)} for i in range(4)]
    extra = {
        "id": "review-1-q",
        "source": "a page",
        "html": "<p>x</p>",
        "date": "2024-05-01",
        "score": 0.25,
        "Quality": 7,
        "gold_label": "x",
        "is_duplicate": "no",
        "label_text": "good",
        "tokens": ["a"],
        "other text": "words",
    }
    extra |= {name: "another text" for name in ("sentence1", "sentence2", "text") if name not in task.texts}
    for name, part in (
        ("plain", rows),
        ("before", [extra | row for row in rows]),
        ("after", [row | extra for row in rows]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    plain, *others = (read_examples(task, tmp_path / f"{name}.jsonl") for name in ("plain", "before", "after"))
    assert len(plain) == 4 and others == [plain, plain]


@pytest.mark.parametrize(
    "text", ['[{"sentence": "a", "label": 1}]', '[\n  {"sentence": "a",\n "label": 1}\n]', "\n [\n"]
)
def test_an_array_of_json_is_said_with_what_to_do(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(
        UserError,
        match=r"train.json, line \d: a JSON array; one JSON object per line is expected; convert it: `jq -c '.\[\]' "
        r"train.json",
    ):
        load_examples(get_task("sst2"), "train", str(tmp_path))


def test_rows_on_which_nobody_agreed_are_left_out_and_counted(tmp_path, capsys):
    rows = [{"premise": "a", "hypothesis": "b", "label": "neutral"}] * 300 + [
        {"premise": "a", "hypothesis": "b", "label": "-"}
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = load_examples(get_task("mnli"), "train", str(tmp_path))
    assert (
        len(examples) == 300 and examples.left_out == {"rows without a label (-)": 1} and not capsys.readouterr().err
    ), "a trace is counted only"
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[-50:] + rows[-1:] * 9)))
    assert load_examples(get_task("mnli"), "train", str(tmp_path)).left_out.total() == 10
    assert capsys.readouterr().err.count("10 rows without a label (-) are skipped") == 1
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[-1]))
    with pytest.raises(UserError, match="the file contains no examples; all 1 rows were skipped"):
        load_examples(get_task("mnli"), "train", str(tmp_path))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"sentence": "a", "label": 2},
            "line 2: label 2: not a label of sst2, whose labels are 0 (negative), 1 (positive)",
        ),
        ({"sentence": "a", "label": -1}, "the hub's test splits have no labels"),
        ({"sentence": "a"}, "line 2: no column `label`"),
        ({"text": "a", "label": 1}, "line 2: no text in column sentence"),
        ({"sentence": None, "label": 1}, "line 2: no text in column sentence"),
        ("not json", "line 2: not JSON"),
        ({"sentence": "a", "label": "-1"}, "the hub's test splits have no labels"),
        ({"sentence": "a", "label": "²"}, "label '²': not a label of sst2"),
    ],
)
def test_bad_rows_are_said_with_file_and_line(tmp_path, row, words):
    file = tmp_path / "train.jsonl"
    file.write_text(
        json.dumps({"sentence": "a", "label": "positive"})
        + "\n"
        + (row if isinstance(row, str) else json.dumps(row))
        + "\n"
    )
    with pytest.raises(UserError) as error:
        read_examples(get_task("sst2"), file)
    assert words in str(error.value) and str(file) in str(error.value)


def test_unreadable_files_and_numbers_out_of_range_are_said(tmp_path):
    pair = {"sentence1": "a", "sentence2": "b"}
    for label in (-1, 5.5, "nan", None):
        (tmp_path / "train.jsonl").write_text(json.dumps(pair | {"label": label}))
        with pytest.raises(UserError, match=r"train\.jsonl, line 1: label .* from 0 to 5"):
            load_examples(get_task("stsb"), "train", str(tmp_path))
    (tmp_path / "train.jsonl").write_bytes(b'{"sentence": "\xff", "label": 1}')
    with pytest.raises(UserError, match="cannot be read"):
        load_examples(get_task("sst2"), "train", str(tmp_path))
    (tmp_path / "train.jsonl").unlink()
    packed = gzip.compress(b'{"sentence": "a", "label": 1}' * 99)
    for task, name in (("sst2", "train.jsonl.gz"), ("squad", "train.json.gz")):
        for broken in (packed[:-9], packed[:12] + bytes(8) + packed[20:]):
            (tmp_path / name).write_bytes(broken)
            with pytest.raises(UserError, match=f"{name}: (cannot be read|not in SQuAD's JSON format)"):
                (load_questions if task == "squad" else load_examples)(get_task(task), "train", str(tmp_path))
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("dev.tsv", "sentence\tgold\nA book.\t1\n", "sentence, gold"),
        ("validation.csv", "text,acceptable,mark,sentence\nA book.,1,,\n", "text, acceptable, mark, sentence"),
    ],
)
def test_a_head_is_said_as_it_is(tmp_path, name, text, columns):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"line 2: no column `label`; the columns are {columns}"):
        load_examples(get_task("cola"), "validation", str(tmp_path))


def test_a_field_may_be_long(tmp_path):
    (tmp_path / "train.csv").write_text(f"text,label\n{'word ' * 40_000},1\n")
    assert len(load_examples(get_task("imdb"), "train", str(tmp_path)).texts[0][0]) == 200_000


def test_a_hub_download_is_found(tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"")
    assert split_files(tmp_path, "train")[0].name == "train-00000-of-00001.parquet"
    (tmp_path / "train-00001-of-00002.parquet").write_bytes(b"")
    with pytest.raises(
        UserError, match="the folder contains train-00000-of-00001.parquet, train-00001-of-00002.parquet"
    ):
        split_files(tmp_path, "train")


def test_what_the_hub_cannot_give_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(
        UserError,
        match=r"nyu-mll/glue is unavailable from the hub and its cache \(no network\); give --data DIR with "
        r"train.\* and validation_matched.\*, validation_mismatched",
    ):
        load_examples(get_task("mnli"), "train", None)


def test_rows_that_qqp_is_known_for_are_left_out_and_counted(tmp_path, capsys):
    (tmp_path / "dev.tsv").write_text(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\n1\t2\t3\tWhy?\tHow?\t1\n"
    )
    assert (
        load_examples(get_task("qqp"), "validation", str(tmp_path)).labels == [1]
        and "1 rows with too few columns" in capsys.readouterr().err
    )
    (tmp_path / "dev.tsv").write_text("index\tquestion\tsentence\tlabel\n0\tQ\tS\tentailment\tmore\n")
    with pytest.raises(UserError, match="line 2: 5 columns, but the header has 4"):
        load_examples(get_task("qnli"), "validation", str(tmp_path))


def test_imdbs_test_may_be_called_validation(tmp_path):
    (tmp_path / "validation.csv").write_text("text,label\nfine,pos\n".replace("pos", "1"))
    assert load_examples(get_task("imdb"), "test", str(tmp_path)).texts == [["fine"]]
    (tmp_path / "test.csv").write_text("text,label\nbad,0\n")
    assert load_examples(get_task("imdb"), "test", str(tmp_path)).texts == [["bad"]]


def test_missing_files_are_said(tmp_path):
    with pytest.raises(UserError, match=r"validation_matched\.\* or dev_matched\.\*.*but the folder contains none"):
        load_examples(get_task("mnli"), "validation_matched", str(tmp_path))
    (tmp_path / "train.tsv").write_text("")
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(UserError, match="the folder contains train.csv, train.tsv"):
        load_examples(get_task("sst2"), "train", str(tmp_path))
    with pytest.raises(UserError, match="did you mean sst2"):
        get_task("SST-2")
    assert len(TASKS) == 13 and TASKS["mnli"].validation == ("validation_matched", "validation_mismatched")


def test_the_grid():
    points = expand_grid(FinetuneConfig(batch_size=8), ["lr=1e-5,2e-5", "epochs=2,3"])
    assert [(p.learning_rate, p.epochs, p.batch_size) for p in points] == [
        (1e-5, 2.0, 8),
        (1e-5, 3.0, 8),
        (2e-5, 2.0, 8),
        (2e-5, 3.0, 8),
    ]
    assert expand_grid(FinetuneConfig(), ["lr=1e-5,0.00001"]) == [FinetuneConfig(learning_rate=1e-5)], "one point, once"
    with pytest.raises(UserError, match="--grid learning_rate=2: learning_rate is given twice"):
        expand_grid(FinetuneConfig(), ["lr=1", "learning_rate=2"])
    for value in (math.inf, math.nan):
        with pytest.raises(UserError, match="finetune.epochs = .*: must be between 1e-06 and 1e"):
            FinetuneConfig(epochs=value).check()
    for match, problem in (
        ([], "has no term,"),
        ([{"loss": "mse", "weight": 0}], "has no term with a weight above 0,"),
    ):
        with pytest.raises(
            UserError, match=f"layers_first = 0.5: finetune.match {problem} so nothing would be learned"
        ):
            FinetuneConfig(layers_first=0.5, match=match).check()
    nothing = FinetuneConfig(soft_label_weight=0, hard_label_weight=0)
    with pytest.raises(UserError, match="soft_label_weight = 0 and finetune.hard_label_weight = 0: nothing would be"):
        nothing.check_learns()
    with pytest.raises(UserError, match="soft_label_weight = 0: nothing would be learned from augmented texts"):
        FinetuneConfig(soft_label_weight=0).check_learns(augmented=True)
    FinetuneConfig(soft_label_weight=0).check_learns()
    replace(nothing, match=[{"loss": "mse"}]).check_learns(augmented=True)
    for wrong in ("rate=1", "lr", "lr=fast", "lr=-1", "precision=fp16"):
        with pytest.raises(UserError):
            expand_grid(FinetuneConfig(), [wrong])


def test_runs_of_an_earlier_version_are_seeds_of_the_same_point(tmp_path):
    """It had fewer settings."""
    settings = FinetuneConfig().as_dict()
    older = {name: value for name, value in settings.items() if not name.startswith("quantize")}
    common = {"length": 128, "precision": "fp32", "folder": str(tmp_path)}
    results = [
        {"seed": seed, "metrics": {"accuracy": seed / 10}, "settings": older if seed < 3 else settings} | common
        for seed in range(5)
    ]
    summary, best = make_summary(TASKS["rte"], results, tmp_path, "model", [])
    assert [run["seed"] for run in summary["seeds"]] == [0, 1, 2, 3, 4] and not summary["grid"]
    assert summary["accuracy"] == 0.2 and best == FinetuneConfig()
