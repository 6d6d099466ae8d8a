"""Test that a task of one's own is read as its file says, and that mistakes are named with place and remedy."""

import gzip
import json
import re

import pytest

from ds_distill.tasks.own_examples import load_own, renumber_labels
from ds_distill.tasks.own_task import find_task
from ds_distill.utils.errors import UserError

BANK = "text,category\nwhere is my card,card_arrival\nmy pin is blocked,pin\nthe card has not come,card_arrival\n"
TAGGED = "Ada B-person\nLovelace\tI-person\nwrote O\n\n\t\nLondon B-place\n-DOCSTART- O\n\nin O\n"


def write(folder, task, **files):
    """Write a task's YAML and its data files, whose names have _ for the dot."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    (folder / "mine.yaml").write_text(task)
    return str(folder / "mine.yaml")


def load(folder, task, **files):
    return load_own(find_task(write(folder, task, **files)))


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_columns_labels_and_files_are_those_of_the_task(tmp_path):
    task, train, dev = load(
        tmp_path,
        "text: text\nlabel: category\ndev: test\nmetric: [accuracy, f1_macro]\n",
        train_csv=BANK,
        test_csv="category,id,text\npin,7,blocked\n",
    )
    assert (task.name, task.labels, task.metrics) == ("mine", ("card_arrival", "pin"), ("accuracy", "f1_macro"))
    assert train.texts == [["where is my card", "my pin is blocked", "the card has not come"]]
    assert (train.labels, dev.labels) == ([0, 1, 0], [1])


def test_labels_that_are_listed_have_that_order_and_may_be_numbers_in_the_file(tmp_path):
    rows = jsonl({"text": "a", "label": 1}, {"text": "b", "label": "no"}, {"text": "c", "label": "off"})
    task, train, _ = load(
        tmp_path, "text: text\nlabel: label\nlabels: [no, yes, off]\n", train_jsonl=rows, dev_jsonl=rows
    )
    assert task.labels == ("no", "yes", "off") and train.labels == [1, 0, 2], "YAML's own no and off stay text"
    rows = jsonl(*({"text": str(i), "label": i % 11} for i in range(22)))
    task, train, _ = load(tmp_path, "text: text\nlabel: label\n", train_jsonl=rows, dev_jsonl=rows)
    assert task.labels == tuple(map(str, range(11))) and train.labels[:11] == list(range(11))


def test_pairs_with_numbers(tmp_path):
    rows = jsonl({"q": "a", "a": "b", "score": 7.5}, {"q": "c", "a": "d", "score": -1})
    task, train, _ = load(tmp_path, "kind: regression\ntext: [q, a]\nlabel: score\n", train_jsonl=rows, dev_jsonl=rows)
    assert task.regression and train.texts == [["a", "c"], ["b", "d"]] and train.labels == [7.5, -1.0]


@pytest.mark.parametrize(
    "keys, rows",
    [
        ("label: tags", [{"tags": ["x", "y"]}, {"tags": []}, {"tags": ["y"]}]),
        ("label: tags", [{"tags": "y, x"}, {"tags": ""}, {"tags": "y"}]),
        ("label: tags\nseparator: ' '", [{"tags": "y x"}, {"tags": " "}, {"tags": "y"}]),
        ("label: tags\nseparator: ' - '", [{"tags": "x - y"}, {"tags": ""}, {"tags": " y "}]),
        ('label: tags\nseparator: "\\t"', [{"tags": "x\ty"}, {"tags": "\t"}, {"tags": "y\t"}]),
        ("label: [x, y]", [{"x": 1, "y": True}, {"x": "0", "y": 0.0}, {"x": "false", "y": "1"}]),
    ],
)
def test_any_number_of_labels_in_one_column_or_in_columns_of_their_own(tmp_path, keys, rows):
    rows = jsonl(*(row | {"text": "t"} for row in rows))
    task, train, _ = load(tmp_path, f"kind: multi-label\ntext: text\n{keys}\n", train_jsonl=rows, dev_jsonl=rows)
    assert task.labels == ("x", "y") and train.labels == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "separator, cell, labels",
    [("\\t", "not ok\tfine", ["fine", "not ok"]), (" - ", "e-mail - spam", ["e-mail", "spam"])],
)
def test_labels_are_separated_by_what_the_task_says_alone(tmp_path, separator, cell, labels):
    rows = jsonl({"text": "t", "tags": cell}, {"text": "u", "tags": labels[0]})
    keys = f'kind: multi-label\ntext: text\nlabel: tags\nseparator: "{separator}"\n'
    task, train, _ = load(tmp_path, keys, train_jsonl=rows, dev_jsonl=rows)
    assert task.labels == tuple(labels) and train.labels == [[1.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("values", [(1, -1), ("+1", "-1"), (10, 2, -3)])
def test_labels_that_are_numbers_have_the_numbers_order(tmp_path, values):
    """F1 is of the second of two labels."""
    rows = jsonl(*({"text": str(value), "label": value} for value in values))
    task, _, _ = load(tmp_path, "text: text\nlabel: label\n", train_jsonl=rows, dev_jsonl=rows)
    assert [float(name) for name in task.labels] == sorted(map(float, values))


def test_a_held_out_share_depends_on_the_texts_alone(tmp_path):
    rows = [{"text": f"text {i % 300}", "label": i % 2} for i in range(600)]
    parts = []
    for order in (rows, rows[::-1], rows + [{"text": f"more {i}", "label": 0} for i in range(99)]):
        keys = "data: all.jsonl\ntext: text\nlabel: label\ndev_share: 0.2\n"
        _, train, dev = load(tmp_path, keys, all_jsonl=jsonl(*order))
        parts.append(set(dev.texts[0]) & {row["text"] for row in rows})
        assert not set(train.texts[0]) & set(dev.texts[0])
    assert parts[0] == parts[1] == parts[2] and 30 < len(parts[0]) < 90


def test_sentences_in_conlls_layout_and_in_rows_of_lists(tmp_path):
    with gzip.open(tmp_path / "dev.conll.gz", "wt") as stream:
        stream.write("Paris B-place\n")
    keys = "kind: token-classification\n"
    task, train, dev = load(tmp_path, keys, train_conll=TAGGED)
    assert task.labels == ("O", "B-person", "I-person", "B-place", "I-place")
    assert train.texts == [[["Ada", "Lovelace", "wrote"], ["London"], ["in"]]]
    assert (train.labels, dev.labels) == ([[1, 2, 0], [3], [0]], [[3]])
    (tmp_path / "train.conll").unlink()
    rows = jsonl({"words": ["Ada", "wrote"], "ner": [3, 0]}, {"words": ["Rome"], "ner": [1]})
    task, train, _ = load(tmp_path, keys + "text: words\nlabel: ner\nlabels: [place, person]\n", train_jsonl=rows)
    assert task.labels[1] == "B-place" and train.labels == [[3, 0], [1]]


def test_comments_of_conlls_layout_are_no_words(tmp_path):
    comments = "# newdoc\n# sent_id = 7\n# text = the cat\n"
    words = "the DET\n# SYM\n# = SYM\ncat NOUN\n"
    lines = f"{comments}{words}\n# id 9f\tdomain=en\n# NOUN\n\n#id NOUN\n"
    keys = "kind: token-classification\nmetric: accuracy\n"
    task, train, _ = load(tmp_path, keys, train_conll=lines, dev_conll=lines)
    assert train.texts == [[["the", "#", "#", "cat"], ["#"], ["#id"]]] and task.labels == ("DET", "NOUN", "SYM")


def test_tags_of_any_kind_are_scored_by_accuracy(tmp_path):
    task, train, _ = load(
        tmp_path,
        "kind: token-classification\nmetric: accuracy\n",
        train_conll="the DET\ncat NOUN\n\na DET\n",
        dev_conll="cat NOUN\n",
    )
    assert task.labels == ("DET", "NOUN") and train.labels == [[0, 1], [0]]


FINE = {"train_csv": BANK, "dev_csv": BANK}
COLUMNS = "text: text\nlabel: category\n"
WORDS = "kind: token-classification\n"


@pytest.mark.parametrize(
    "task, files, sentence",
    [
        ("text: text\nlable: category\n", FINE, "mine.yaml: lable: no such key; did you mean label?; the keys are "),
        ("label: category\n", FINE, "mine.yaml: text is missing; name the column of the text"),
        ("text: text\n", FINE, "mine.yaml: label is missing; name the column of the label"),
        (COLUMNS + "kind: multilabel\n", FINE, "kind: multilabel: no such kind of task; did you mean multi-label?"),
        (
            COLUMNS + "metric: acuracy\n",
            FINE,
            "metric: acuracy: no metric of a single-label task; did you mean accuracy?",
        ),
        (
            COLUMNS + "metric: f1\n",
            FINE | {"train_csv": BANK + "what,other\n"},
            "mine.yaml: metric: f1: is for two labels, but",
        ),
        (
            COLUMNS,
            FINE | {"train_csv": BANK + ",lost\n"},
            "no text in column text; complete the line, or remove it",
        ),
        (COLUMNS + "name: SST-2\n", FINE, "name: SST-2: is the name of a task that this program has; write another"),
        (COLUMNS + "name: a/b\n", FINE, "name: 'a/b': must have letters, digits"),
        (COLUMNS + "data: nowhere\n", FINE, "data: nowhere: there is no .*nowhere; give a file or a folder"),
        (COLUMNS + "dev: tset\n", FINE, "dev: .* has no file tset.* it has dev.csv, mine.yaml, train.csv"),
        (COLUMNS + "dev: train\n", FINE, "train.csv is the training set; name another file, or write dev_share: 0.1"),
        (
            COLUMNS,
            {"train_csv": BANK},
            "dev is missing, and .* has no file dev.* or validation.*; name the file of the",
        ),
        (
            COLUMNS + "dev_share: 2\n",
            {"train_csv": BANK},
            "dev_share: 2: must be a number between 0 and 1, such as 0.1",
        ),
        (COLUMNS + "dev_share: 0.1\ndev: dev\n", FINE, "dev_share: dev names a dev set; leave out one of the two"),
        (
            "text: txt\nlabel: category\n",
            FINE,
            "train.csv, line 2: no column txt; did you mean text?; the columns are text, category; name one of them as "
            "`text` in .*mine.yaml",
        ),
        (
            COLUMNS,
            FINE | {"train_csv": BANK + "and this,\n"},
            "train.csv, line 5: no label in column category; complete",
        ),
        (
            COLUMNS,
            FINE | {"dev_csv": BANK + "and this,pin_code\n"},
            "dev.csv, line 5: label 'pin_code': no training example in .*train.csv has it.*; correct the line or "
            "remove it, or add examples of it",
        ),
        (
            COLUMNS + "labels: [card_arrival, pins]\n",
            FINE,
            r"train.csv, line 3: label 'pin': not one of `labels` in .*mine.yaml \(card_arrival, pins\); did you mean "
            "pins?; correct the line, or add the label there",
        ),
        (
            COLUMNS + "labels: [card_arrival, pin, other]\n",
            FINE,
            "mine.yaml: label other: no training example in .*train.csv has it; add examples of it, or remove it from "
            "`labels`",
        ),
        (COLUMNS, FINE | {"train_csv": "text,category\na,b\n"}, "train.csv: all labels are 'b'; give examples of at"),
        (COLUMNS, FINE | {"train_csv": ""}, "train.csv: the file contains no examples; give a file with a header and"),
        (WORDS, {"train_conll": "", "dev_conll": ""}, "examples; give a file with a word and its tag on each line"),
        (
            "text: text\nlabel: text\n",
            FINE,
            "label: text: is a column of the text, too, so a model would read the answer",
        ),
        ("", FINE, "mine.yaml: contains nothing; it must contain keys, such as text: text"),
        *(
            (
                "kind: regression\n" + COLUMNS,
                {"train_jsonl": jsonl({"text": "a", "category": number}), "dev_csv": BANK},
                sentence,
            )
            for number, sentence in (
                (True, "True in column category: not a number"),
                (-1e19, "train.jsonl, line 1: -1e+19 in column category: its square is no number in fp32; scale the"),
                (10**400, "in column category: not a number"),
            )
        ),
        (
            "kind: regression\n" + COLUMNS,
            FINE,
            "train.csv, line 2: 'card_arrival' in column category: not a number; correct the line, or remove it",
        ),
        (
            "kind: multi-label\ntext: text\nlabel: [id, category]\n",
            FINE | {"train_csv": "text,id,category\na,0,pin\n"},
            "train.csv, line 2: 'pin' in column category: must be 1 if the example has this label, else 0",
        ),
        (
            "kind: multi-label\ntext: text\nlabel: [toxic]\n",
            {"train_csv": "text,toxic\na,0\nb,1\n", "dev_csv": "text,toxic\na,0\n"},
            "train.csv: column toxic has 0 and 1 alone; give the column of each label, label: [toxic, another], or",
        ),
        (
            COLUMNS.replace("category", "[text, category]"),
            FINE,
            "a single-label task has one column of labels; name one",
        ),
        (
            COLUMNS,
            {
                "train_csv": "text,category\n" + "".join(f"t,{i / 4}\n" for i in range(40)),
                "dev_csv": "text,category\nt,1.0\n",
            },
            "train.csv: column category has 40 different labels, and some are numbers with decimals",
        ),
        (
            WORDS,
            {"train_conll": TAGGED, "dev_conll": "in O\nParis I-place\n"},
            "dev.conll, line 2: tag 'I-place' of 'Paris': continues an entity, but the word before has 'O'; write "
            "B-place where an entity begins",
        ),
        (
            WORDS,
            {"train_conll": TAGGED, "dev_conll": "Paris place\n"},
            "dev.conll, line 1: tag 'place' of 'Paris': not in the BIO scheme, whose tags are O, B-TYPE and I-TYPE",
        ),
        (
            WORDS,
            {"train_conll": TAGGED, "dev_conll": "in O\n\nthe O\nVW B-maker\n"},
            "dev.conll, line 4: label 'B-maker': no training example in .*train.conll has it",
        ),
        (
            WORDS,
            {"train_conll": TAGGED + "in\n", "dev_conll": TAGGED},
            "train.conll, line 10: 'in': must have a word and",
        ),
        (
            WORDS + "labels: [B-person]\n",
            {"train_conll": TAGGED, "dev_conll": TAGGED},
            "write the types alone, such as",
        ),
        (WORDS, {"train_conll": "in O\n", "dev_conll": "in O\n"}, "train.conll: all tags are O; give sentences with"),
        (
            WORDS,
            {"train_jsonl": jsonl({"tokens": ["a", "b"], "tags": ["O"]}), "dev_conll": TAGGED},
            "train.jsonl, line 1: 2 words, but 1 tags; give each word, as text, one tag",
        ),
        (
            WORDS,
            {"train_jsonl": jsonl({"tokens": ["a", None], "tags": ["O", "O"]}), "dev_conll": TAGGED},
            "train.jsonl, line 1: None in tokens: not a word; give each word as text",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place_and_what_to_do(tmp_path, task, files, sentence):
    with pytest.raises(UserError) as error:
        load(tmp_path, task, **files)
    pattern = sentence.replace("?", r"\?") if ".*" in sentence else re.escape(sentence)
    assert re.search(pattern, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_no_break_space_is_part_of_a_word(tmp_path):
    lines = "10\u00a0000 O\n\u00a0 O\nRue\u3000Royale B-place\u00a0\n\u00a0\nyes O\n"
    _, train, dev = load(tmp_path, WORDS, train_conll=lines, dev_conll=lines.replace(" ", "\t"))
    assert train.texts == dev.texts == [[["10\u00a0000", "\u00a0", "Rue\u3000Royale"], ["yes"]]]
    assert train.labels == [[0, 0, 1], [0]]


@pytest.mark.parametrize("kind", ["single-label", "multi-label", "token-classification"])
def test_the_names_of_labels_can_be_written_to_a_file(tmp_path, kind):
    """JSON may hold half of a character, which no file in UTF-8 can."""
    name = "B-\ud83d" if kind.startswith("token") else "\ud83d"
    rows = [
        {"text": "a", "label": name, "tokens": ["a"], "tags": [name]},
        {"text": "b", "label": "y", "tokens": ["b"], "tags": ["O"]},
    ]
    keys = f"kind: {kind}\n" + ("" if kind.startswith("token") else "text: text\nlabel: label\n")
    task, _, _ = load(tmp_path, keys, train_jsonl=jsonl(*rows), dev_jsonl=jsonl(*rows))
    assert "\ufffd" in "".join(task.labels) and "".join(task.labels).encode()


@pytest.mark.parametrize(
    "kind, rows, expected",
    [
        ("single-label", [{"label": 0}, {"label": "b"}, {"label": 2}], [1, 2, 0]),
        ("multi-label", [{"label": ["a", "c"]}, {"label": [1]}, {"label": []}], [[1, 1, 0], [0, 0, 1], [0, 0, 0]]),
        (
            "token-classification",
            [{"tokens": ["x", "y"], "tags": ["b", "c"]}, {"tokens": ["x"], "tags": [0]}],
            [[2, 0], [1]],
        ),
    ],
)
def test_labels_in_the_order_of_a_model_are_the_same_labels(tmp_path, kind, rows, expected):
    """Numbers in the file stay those of the task."""
    keys = "metric: accuracy\n" if kind.startswith("token") else "text: text\nlabel: label\n"
    rows = jsonl(*({"text": "t"} | row for row in rows))
    task, train, _ = load(tmp_path, f"kind: {kind}\nlabels: [a, b, c]\n{keys}", train_jsonl=rows, dev_jsonl=rows)
    assert renumber_labels(train, task, ["c", "a", "b"]).labels == expected
    assert renumber_labels(train, task, task.labels) == train


def test_a_task_that_is_no_file_and_data_that_are_given_twice(tmp_path):
    with pytest.raises(UserError, match=r"--task .*none.yaml: no such file; give the YAML file of a task, or one of "):
        find_task(str(tmp_path / "none.yaml"))
    name = write(tmp_path, COLUMNS, **FINE)
    with pytest.raises(UserError, match="names its data itself; change `data` there, and leave --data out"):
        find_task(name, str(tmp_path))
    with pytest.raises(UserError, match=r"--task ner: --data is missing; give a folder with train.conll"):
        find_task("ner")
