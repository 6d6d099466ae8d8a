"""Held-out texts keep their names, whatever their order and company.

A corpus is identified by its content, wherever it lies.
"""

import itertools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.cli import main
from ds_distill.data import fingerprint
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.heldout import heldout_names, heldout_sets
from ds_distill.data.run_data import prepare_run_tokens
from ds_distill.data.sources import corpus_identity, split_inputs
from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.recipe import Data, Recipe
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import tiny_bert

WORDS = (
    "the small model reads what a large one wrote and keeps most of it because both see every word of the text".split()
)
RECIPE = Recipe(data=Data(sequence_length=16, workers=1))


def write(file: Path, seed: int, documents: int = 12) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "\n\n".join(
            " ".join(WORDS[(seed * 7 + 5 * i + j * (1 + seed)) % len(WORDS)] for j in range(18))
            for i in range(documents)
        )
    )
    return file


def measured(folder: Path, names: dict[str, str]) -> None:
    """Leave in `folder` the files that a run leaves after measuring these texts."""
    for name, text in names.items():
        pieces = split_inputs([text])
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "manifest.json").write_text(
            json.dumps({"corpus": corpus_identity([text], pieces), "content": content_fingerprint(pieces)})
        )


def write_texts(folder: Path, *names: str) -> list[str]:
    return [str(write(folder / name, seed)) for seed, name in enumerate(names)]


@pytest.mark.parametrize(
    "files, names",
    [
        (["text.txt"], ["text"]),
        (["heldout_wikipedia.txt"], ["heldout_wikipedia"]),
        (["news.valid.txt", "news.test.txt"], ["news.test", "news.valid"]),
        (["a/news.txt", "b/news.txt"], ["a_news", "b_news"]),
        (["a/x/news.txt", "b/x/news.txt", "c.txt"], ["a_x_news", "b_x_news", "c"]),
        (["läuft (neu).txt"], ["läuft_neu_"]),
        (["a/b.txt", "a_b.txt", "c/b.txt"], ["a_b", "c_b", "sets_a_b"]),
        ([".txt"], ["txt"]),
    ],
)
def test_a_text_is_called_as_its_file(tmp_path, files, names):
    folder = tmp_path / "sets"
    heldout = heldout_names(write_texts(folder, *files), RECIPE, tmp_path / "none")
    assert sorted(heldout) == names


def test_columns_of_one_file_are_two_texts(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"title": "a b c", "body": "d e f"}\n' * 3)
    rows = str(tmp_path / "rows.jsonl")
    assert heldout_names([f"{rows}#title", f"{rows}#body"], RECIPE, tmp_path / "none") == {
        "rows#body": f"{rows}#body",
        "rows#title": f"{rows}#title",
    }


PARTS = st.sampled_from(["a", "b", "news", "news.valid", "news.test", "ü x", "..a", "a_b", "b_news"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".txt")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(paths=st.lists(PATHS, min_size=1, max_size=5, unique=True), data=st.data())
def test_names_are_distinct_and_stay_whatever_the_order_and_the_company(paths, data):
    with tempfile.TemporaryDirectory() as scratch:
        texts = write_texts(Path(scratch) / "texts", *paths)
        run = Path(scratch) / "run"
        first = heldout_names(data.draw(st.permutations(texts)), RECIPE, run)
        assert sorted(first.values()) == sorted(texts), "one name a text, one text a name"
        assert first == heldout_names(texts, RECIPE, run)
        assert all("/" not in name and not name.startswith(".") for name in first)
        measured(run, first)
        some = data.draw(st.lists(st.sampled_from(texts), min_size=1, unique=True))
        later = heldout_names([*some, str(write(Path(scratch) / "texts" / "news.txt", 99))], RECIPE, run)
        assert {name: text for name, text in later.items() if text in some} == {
            name: text for name, text in first.items() if text in some
        }


def test_a_text_that_was_moved_keeps_its_name_and_one_in_its_place_does_not_take_it(tmp_path):
    [old] = write_texts(tmp_path, "one/news.txt")
    measured(tmp_path / "run", {"news": old})
    moved = str(shutil.move(old, tmp_path / "moved.txt"))
    assert heldout_names([moved], RECIPE, tmp_path / "run") == {"news": moved}
    [other] = write_texts(tmp_path, "two/news.txt")
    write(Path(other), 5)
    assert heldout_names([other, moved], RECIPE, tmp_path / "run") == {"news": moved, "two_news": other}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run that has begun, with the tokens of c.txt and of the held-out news.valid.txt."""
    folder = tmp_path_factory.mktemp("prepared")
    write_texts(folder, "c.txt", "news.valid.txt", "news.test.txt")
    train_wordpiece([" ".join(WORDS)] * 3, 200, folder / "tokenizer")
    output = folder / "run"
    prepare_run_tokens([str(folder / "c.txt")], str(folder / "tokenizer"), RECIPE, output / "tokens", bound=output)
    heldout_sets([str(folder / "news.valid.txt")], output / "tokens", RECIPE, output)
    (output / "run.json").write_text("{}")
    return folder


@pytest.fixture
def run(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "run")


def again(folder: Path, corpus: Path) -> Path:
    return prepare_run_tokens(
        [str(corpus)], str(folder / "tokenizer"), RECIPE, folder / "run" / "tokens", bound=folder / "run"
    )


def test_a_corpus_that_was_moved_is_the_same(run):
    before = (run / "run" / "tokens" / "manifest.json").read_bytes()
    again(run, run / "c.txt")  # the folder itself has been moved
    moved = shutil.move(run / "c.txt", run / "elsewhere.txt")
    assert (again(run, moved) / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("model", "MODEL", 1),
        lambda text: text[:-1] + "X",
        lambda text: "X" + text[1:],
        lambda text: text + "\n\nmore of it",
        lambda text: text[:500],
    ],
)
def test_a_corpus_that_was_changed_is_another_even_where_its_size_is_the_same(run, change):
    (run / "c.txt").write_text(change((run / "c.txt").read_text()))
    with pytest.raises(
        UserError,
        match=rf"holds another run \(--corpus .*resume with the text of that run: --tokens {run / 'run' / 'tokens'} "
        "instead of --corpus",
    ):
        again(run, run / "c.txt")


def test_another_setting_is_named_without_that_remedy(run):
    with pytest.raises(UserError, match=r"\(data.sequence_length was 16, is 24\): choose another --output$"):
        recipe = Recipe(data=Data(sequence_length=24, workers=1))
        prepare_run_tokens(
            [str(run / "c.txt")], str(run / "tokenizer"), recipe, run / "run" / "tokens", bound=run / "run"
        )


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("model", "MODEL", 1), lambda text: text + "\n\nmore of it"]
)
def test_a_held_out_text_that_was_changed_is_named(run, change):
    text = run / "news.valid.txt"
    write(text, 1)
    place = json.loads((run / "run" / "heldout" / "news.valid" / "manifest.json").read_text())["corpus"][0][0]
    assert heldout_sets([str(text)], run / "run" / "tokens", RECIPE, run / "run").keys() == {"news.valid"}, (
        "the same, though it lies elsewhere"
    )
    original = Path(place).read_text()
    try:
        Path(place).write_text(change(original))
        with pytest.raises(UserError, match=r"holds another run \(--heldout .*: choose another --output$"):
            heldout_sets([place], run / "run" / "tokens", RECIPE, run / "run")
    finally:
        Path(place).write_text(original)


def test_data_of_before_fingerprints_goes_by_place_and_size(run):
    file = run / "run" / "tokens" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["content"]
    file.write_text(
        json.dumps(manifest | {"corpus": corpus_identity([str(run / "c.txt")], split_inputs([str(run / "c.txt")]))})
    )
    before = file.read_bytes()
    assert (again(run, run / "c.txt") / "manifest.json").read_bytes() == before
    with pytest.raises(UserError, match="--tokens"):
        again(run, shutil.move(run / "c.txt", run / "d.txt"))


def test_of_a_large_corpus_the_ends_and_parts_between_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "BUDGET", 64 * 1024)
    monkeypatch.setattr(fingerprint, "BLOCK", 1024)
    file = tmp_path / "large.txt"
    text = bytes(itertools.islice(itertools.cycle(b"some words of text \n"), 2**20))
    fingerprints = set()
    for changed in (
        text,
        b"X" + text[1:],
        text[:-1] + b"X",
        text + b"X",
        text[: 2**19] + b"X" * 32768 + text[2**19 + 32768 :],
    ):
        file.write_bytes(changed)
        fingerprints.add(content_fingerprint(split_inputs([str(file)])))
    assert len(fingerprints) == 5


def test_figures_stay_with_their_texts(tmp_path, capsys):
    """The texts are given again in another order, with fewer of them, and with one more."""
    texts = write_texts(tmp_path, "c.txt", "news.valid.txt", "news.test.txt", "third.txt")
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, 200, tmp_path / "teacher")
    tiny_bert(layers=2, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "teacher")

    def figures(*heldout: str) -> dict:
        words = [
            "distill",
            "--teacher",
            tmp_path / "teacher",
            "--corpus",
            texts[0],
            "--output",
            tmp_path / "run",
            "--heldout",
            *heldout,
            "--data.sequence_length",
            16,
            "--data.workers",
            1,
            "--training.global_batch_size",
            4,
            "--training.micro_batch_size",
            2,
            "--training.max_tokens",
            128,
            "--training.precision",
            "fp32",
            "--training.optimizer",
            "torch",
            "--training.compile",
            "off",
        ]
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err[-2000:]
        return json.loads(capsys.readouterr().out.splitlines()[-1])["heldout_sets"]

    first = figures(texts[1], texts[2])
    assert first.keys() == {"news.valid", "news.test"} and first["news.valid"] != first["news.test"]
    assert figures(texts[2], texts[1]) == first == figures(texts[2])
    extended = figures(texts[3], texts[1])
    assert extended == first | {"third": extended["third"]}, "a run that is through is measured on what it had not been"
