"""Test the development sets that are taken out of training sets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data.development import choose, main, read_training_set
from ds_distill.finetune.data import load_data
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.examples import load_examples
from ds_distill.tasks.squad import load_questions

TEXTS = st.lists(st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=2), min_size=1, max_size=40)


@given(TEXTS, TEXTS, st.floats(0.05, 0.9))
def test_no_text_is_on_both_sides_of_any_task(one, other, share):
    texts = {"one": one, "other": other}
    chosen = choose(texts, share)
    sides = [
        {
            text
            for task, examples in texts.items()
            for number, own in enumerate(examples)
            if (number in chosen[task]) == side
            for text in own
        }
        for side in (False, True)
    ]
    assert not sides[0] & sides[1]
    assert all(len(chosen[task]) <= share * len(examples) for task, examples in texts.items())
    assert choose(texts, share) == chosen, "the same call chooses the same"


def test_as_many_are_held_out_as_asked_for_where_no_text_is_shared():
    chosen = choose({"one": [(number,) for number in range(200)], "other": [(-1 - n,) for n in range(50)]}, 0.1)
    assert [len(numbers) for numbers in chosen.values()] == [20, 5]


@pytest.mark.parametrize("task", ["stsb", "sst2", "squad"])
def test_the_two_parts_are_the_training_set(task, tmp_path, monkeypatch, capsys):
    rows = {
        "stsb": [{"sentence1": f"a {i}", "sentence2": f"b {i // 2}", "label": i / 10} for i in range(40)],
        "sst2": [{"sentence": f"é {i}\n\u2028", "label": i % 2} for i in range(40)],
        "squad": [
            {
                "id": str(i),
                "question": f"q {i}?",
                "context": f"It is {i // 4}.",
                "answers": {"text": [f"{i // 4}"], "answer_start": [6]},
            }
            for i in range(40)
        ],
    }[task]
    (tmp_path / task).mkdir()
    (tmp_path / task / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["d", "--data", str(tmp_path), "--tasks", task, "--output", str(output)])
    assert main() == 0 and "held out" in capsys.readouterr().err
    load = load_questions if task == "squad" else load_examples
    train, dev = (load(get_task(task), split, str(output / task)) for split in ("train", "validation"))
    assert len(dev) in range(1, 5) and len(train) + len(dev) == 40
    whole, _ = read_training_set(get_task(task), str(tmp_path / task))
    parts = [json.loads(line) for file in sorted((output / task).iterdir()) for line in file.read_text().splitlines()]
    assert sorted(map(json.dumps, parts)) == sorted(map(json.dumps, whole))


def test_both_dev_sets_of_mnli_are_the_held_out_part(tmp_path, monkeypatch):
    (tmp_path / "mnli").mkdir()
    rows = [{"premise": f"a {i}", "hypothesis": f"b {i}", "label": i % 3} for i in range(40)]
    (tmp_path / "mnli" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["d", "--data", str(tmp_path), "--tasks", "mnli", "--output", str(output)])
    assert main() == 0
    data = load_data(get_task("mnli"), str(output / "mnli"))
    held_out = {split: len(part) for split, part in data.dev.items()}
    assert len(data.train) == 36 and held_out == {"validation_matched": 4, "validation_mismatched": 4}


def test_a_share_that_leaves_nothing_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text('{"sentence": "a", "label": 0}\n{"sentence": "a", "label": 1}\n')
    words = ["d", "--data", str(tmp_path), "--tasks", "sst2", "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "sst2 has 2 training examples, 0 of which would be held out; give another share" in capsys.readouterr().err
