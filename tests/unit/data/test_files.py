"""Test the files that an input names.

Missing files, and files that only stand for others, are reported. Pipes and saved data sets are
read.
"""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from shutil import which

import datasets
import numpy as np
import pyarrow
import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from ds_distill.data import sources
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.masking import Masker
from ds_distill.data.prepare import prepare
from ds_distill.data.read_warnings import Findings
from ds_distill.data.readers import documents, read
from ds_distill.data.run_data import make_masker
from ds_distill.data.sources import corpus_identity, split_inputs
from ds_distill.data.tokenizer import special_ids, train_wordpiece, vocabulary_size
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError
from tests.start import ROOT, environment_of

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 734003200\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(
        ["the student learns what a teacher knows from soft targets"] * 9,
        256,
        tmp_path_factory.mktemp("tokenizer") / "t",
    )


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("here")
    return folder


# --- missing files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b.txt", "b.jsonl.gz", "b.parquet", "sub/b.txt", "wiki"])
def test_a_link_to_nothing_is_named(corpus, name):
    """A link without a suffix is named too, since it may have led to a folder."""
    (corpus / name).symlink_to("/nowhere/store/b")
    with pytest.raises(
        UserError,
        match=rf"corpus/{name}: a link to /nowhere/store/b, which does not exist; restore that file, or "
        r"remove the link",
    ):
        split_inputs([str(corpus)])
    if "." in name:
        with pytest.raises(UserError, match="a link to /nowhere"):
            split_inputs([f"{corpus}/**/b*"])
    with pytest.raises(UserError, match="a link to /nowhere"):
        split_inputs([str(corpus / name)])


def test_links_that_lead_in_circles_are_named(corpus):
    (corpus / "loop.txt").symlink_to(corpus / "loop.txt")
    with pytest.raises(UserError, match=r"loop\.txt: a link"):
        split_inputs([str(corpus)])


def test_links_that_would_not_be_read_do_not_matter(corpus):
    for name in (".hidden.txt", "picture.png", "notes.md"):
        (corpus / name).symlink_to("/nowhere")
    assert list(documents([str(corpus)])) == ["here"]


def test_a_folder_or_file_that_may_not_be_read_is_named(corpus):
    (corpus / "sub" / "b.txt").write_text("there")
    program = (
        "import os; from ds_distill.data.sources import split_inputs; os.seteuid(65534); "
        f"split_inputs([{str(corpus)!r}])"
    )
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    for parent in list(corpus.parents)[:-2]:
        os.chmod(parent, 0o755)
    for path, message in (
        (corpus / "sub", "cannot be read (Permission denied)"),
        (corpus / "sub" / "b.txt", "Permission denied"),
    ):
        path.chmod(0)
        done = subprocess.run([sys.executable, "-c", program], env=environment_of(), capture_output=True, text=True)
        assert done.returncode and str(path) in done.stderr and message in done.stderr, done.stderr
        path.chmod(0o755)


@pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.parquet", "b.txt.gz", "b.csv.zst", "b.arrow", "sub/b.tsv"])
def test_a_pointer_among_the_files_is_named(corpus, name):
    (corpus / name).write_text(POINTER)
    for given in (
        [str(corpus / name)] if name.endswith("arrow") else [str(corpus), str(corpus / name), f"{corpus}/**/b*"]
    ):
        with pytest.raises(
            UserError,
            match=rf"{name}: a Git LFS pointer of 134 bytes instead of the file of 734,003,200 bytes; "
            rf"run `git lfs pull` in {corpus}",
        ):
            split_inputs([given])


# --- folders of data sets --------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(5)], "other": ["o"] * 5})
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([4, 2])}).save_to_disk(tmp_path / "dict")
    return tmp_path


def test_what_save_to_disk_wrote_is_read(saved):
    rows = [f"row {i}" for i in range(5)]
    for given in ("one", "hf:one", "hf:dict", "hf:dict@train", "one#text"):
        where = given.replace("hf:", f"hf:{saved}/") if given.startswith("hf:") else f"{saved}/{given}"
        assert list(documents([where])) == rows
    assert sorted(documents([str(saved / "dict")])) == sorted([*rows, "row 4", "row 2"])
    assert list(documents([f"hf:{saved}/dict@test#text"])) == ["row 4", "row 2"]
    assert list(documents([f"hf:{saved}/one#other"])) == ["o"] * 5
    assert list(documents([str(next((saved / "one").glob("*.arrow")))])) == rows[:3]
    with pytest.raises(
        UserError, match=r"dict: no split 'dev'; its splits are test, train; choose one: hf:.*dict@SPLIT"
    ):
        split_inputs([f"hf:{saved}/dict@dev"])
    with pytest.raises(UserError, match="one: no split 'dev'; its splits are train"):
        split_inputs([f"hf:{saved}/one@dev"])
    with pytest.raises(UserError, match="no column 'body'; the columns are text, other"):
        split_inputs([f"{saved}/one#body"])


def test_an_arrow_file_that_was_cut_anywhere_is_damaged_or_said_to_be_cut(tmp_path):
    rows = pyarrow.table({"text": [f"row {i}" for i in range(40)]})
    whole = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(whole, rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=10):
            stream.write_batch(batch)
    data, file = whole.getvalue().to_pybytes(), tmp_path / "rows.arrow"
    told = set()
    for end in range(1, len(data) + 1):
        file.write_bytes(data[:end])
        findings = Findings()
        try:
            [piece] = split_inputs([str(file)])
            texts = [document.text for document in read(piece, findings=findings)]
        except UserError as error:
            assert "rows.arrow" in str(error)
            told.add("damaged")
            continue
        assert texts == [f"row {i}" for i in range(len(texts))]
        assert (end == len(data)) != any("has no end mark" in sentence for sentence in findings.sentences())
        told.add(len(texts))
    assert {"damaged", 10, 20, 40} <= told


def test_a_saved_data_set_without_a_file_or_beside_others(saved):
    next((saved / "one").glob("*.arrow")).unlink()
    with pytest.raises(FileNotFoundError):
        split_inputs([str(saved / "one")])
    (saved / "one" / "more.txt").write_text("more")
    (saved / "one" / "state.json").unlink()
    assert list(documents([str(saved / "one")])) == ["more"]  # an unknown .arrow file may be a cache of indices


def test_metadata_of_a_hub_clone_is_no_text(corpus):
    (corpus / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (corpus / "README.md").write_text("about")
    (corpus / "sub" / "rows.jsonl").write_text('{"text": "row"}\n')
    assert list(documents([str(corpus)])) == ["here", "row"]


# --- pipes -----------------------------------------------------------------------------------------------------------


def through(data, command):
    """Run a shell command with `data` as the corpus on its standard input; return standard output and error."""
    done = subprocess.run(
        ["bash", "-c", command], input=data, env=environment_of(HF_HUB_OFFLINE="1"), cwd=ROOT, capture_output=True
    )
    return done.stdout.decode(), done.stderr.decode()


READ = (
    "from ds_distill.data.sources import *; from ds_distill.data.readers import read; import sys; "
    "p = split_inputs(sys.argv[1:]); "
    "print([d.text for q in split_inputs(sys.argv[1:]) for d in read(q)], corpus_identity(sys.argv[1:], p))"
)


@pytest.mark.parametrize(
    "data, given, texts",
    [
        (b"one\n\ntwo", "-", "['one', 'two']"),
        (b"one\n\ntwo", "/dev/stdin", "['one', 'two']"),
        (b"one", "<(cat)", "['one']"),
        (gzip.compress(b"one\n\ntwo", mtime=0), "<(cat)", "['one', 'two']"),
        (b'{"text": "a", "body": "b"}\n', "<(cat)", "['a']"),
        (b'{"text": "a", "body": "b"}\n', "<(cat)#body", "['b']"),
        (b"id,body\n1,b\n", "<(cat)#body", "['b']"),
        (b"id\tbody\n1\tb\n", "-#body", "['b']"),
        (b"", "-", "[]"),
    ],
)
def test_what_comes_through_a_pipe_is_read_however_often_it_is_asked_for(data, given, texts):
    out, err = through(data, f"{sys.executable} -c '{READ}' {given}")
    assert out.startswith(texts), err
    assert err.count(": a pipe; copied into ") == 1 and "pipe " in out


def test_a_pipe_is_told_by_its_content_and_leaves_nothing_behind(tmp_path):
    command = f"TMPDIR={tmp_path} {sys.executable} -c '{READ}' <(cat)"
    outs = [through(data, command)[0].split("] ")[1] for data in (b"one", b"one", b"two")]
    assert outs[0] == outs[1] != outs[2] and not list(tmp_path.iterdir())


def test_a_named_pipe_and_a_redirected_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("one\n\ntwo"))
    thread.start()
    assert list(documents([str(tmp_path / "pipe")])) == ["one", "two"]
    thread.join()
    (tmp_path / "rows.jsonl").write_text('{"text": "row"}\n')
    out, err = through(b"", f"{sys.executable} -c '{READ}' - < {tmp_path / 'rows.jsonl'}")
    assert out.startswith("['row']") and not err  # the file itself, by its name


def test_pipes_that_cannot_be_read_are_answered(tmp_path):
    for given, message in (
        ("/dev/fd/99", "/dev/fd/99: not open in this process, because a launcher's processes do not inherit pipes"),
        ("<(echo a,b)#body", "the data from the pipe is neither JSON lines nor csv or tsv with that column"),
    ):
        assert message in through(b"", f"{sys.executable} -c '{READ}' {given}")[1]
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    with pytest.raises(OSError):
        split_inputs([str(tmp_path / "socket")])
    server.close()


def test_a_window_beyond_the_librarys_is_answered_and_a_pipe_is_the_remedy(tmp_path):
    text = b"".join(b"line %d of a long text\n" % i for i in range(2000))
    compressed = (
        subprocess.run(["zstd", "-q", "--ultra", "-22", "--long=31", "-c"], input=text, capture_output=True)
        if which("zstd")
        else None
    )
    if compressed is None or compressed.returncode:
        pytest.skip("needs zstd")
    (tmp_path / "a.txt.zst").write_bytes(compressed.stdout)
    with pytest.raises(
        UserError, match=r"a window of more than 128 MiB .*zstd -dc --long=31 .*a\.txt\.zst > NEW.*--corpus <\(zstd"
    ):
        split_inputs([str(tmp_path / "a.txt.zst")])
    out, _ = through(b"", f"{sys.executable} -c '{READ}' <(zstd -dc --long=31 {tmp_path}/a.txt.zst)")
    assert "line 1999 of a long text" in out


# --- machines and vocabularies ---------------------------------------------------------------------------------------


def test_without_shared_memory_one_worker_prepares(tmp_path):
    """No lock can be made in a read-only /dev/shm."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the student learns\n\nwhat a teacher knows")
    program = tmp_path / "job.py"
    program.write_text(f"""
from pathlib import Path
from ds_distill.demo.documentation import read_documentation
from ds_distill.data.prepare import prepare
from ds_distill.data.tokenizer import train_wordpiece
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    tokenizer = train_wordpiece(["the student learns what a teacher knows"] * 9, 256, folder / "t")
    files = [str(folder / "a.txt"), str(folder / "b.txt")]
    print(prepare(files, tokenizer, folder / "out", sequence_length=16, heldout_fraction=0.0, seed=0, \
workers=2)["documents"])
    print(len(read_documentation(2000).train))
""")
    shell = f"mount -t tmpfs -o ro none /dev/shm && exec {sys.executable} {program}"
    done = (
        subprocess.run(["unshare", "-Urm", "sh", "-c", shell], env=environment_of(), capture_output=True, text=True)
        if which("unshare")
        else None
    )
    if done is None or "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs unshare and mount")
    assert done.stdout.startswith("{'train': 4, 'heldout': 0}"), done.stderr
    assert "preparing with one worker instead of 2" in done.stderr and int(done.stdout.split()[-1]) > 0


@pytest.mark.parametrize("kind", ["a line twice", "a gap"])
def test_ids_beyond_the_number_of_names_have_their_place(tmp_path, kind):
    """The vocabulary has one line twice, and its later id counts; ids without a name are neither masked nor drawn."""
    if kind == "a line twice":
        (tmp_path / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "student", "the", "learns"])
        )
        tokenizer = BertTokenizerFast.from_pretrained(str(tmp_path))
        size, unused = 9, {5}
    else:
        vocabulary = {
            "[PAD]": 0,
            "[UNK]": 1,
            "[CLS]": 2,
            "[SEP]": 3,
            "[MASK]": 4,
            "the": 7,
            "student": 8,
            "learns": 70_000,
        }
        backend = BertTokenizerFast(vocab=vocabulary).backend_tokenizer.to_str()
        names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend), **names)
        size, unused = 70_001, {5, 6, *range(9, 70_000)}
    assert (
        len(tokenizer) < vocabulary_size(tokenizer) == size and set(special_ids(tokenizer)) == {0, 1, 2, 3, 4} | unused
    )
    (tmp_path / "a.txt").write_text("the student learns " * 50)
    manifest = prepare(
        [str(tmp_path / "a.txt")],
        tokenizer,
        tmp_path / "out",
        sequence_length=16,
        heldout_fraction=0.0,
        seed=0,
        workers=1,
    )
    assert manifest["vocab_size"] == size and manifest["dtype"] == ("uint16" if size < 65536 else "uint32")
    store = TokenDataset.open(tmp_path / "out")
    known = set(tokenizer("the student learns", add_special_tokens=False)["input_ids"])
    assert set(np.flatnonzero(store.token_counts)) == known | {2, 3}
    masker = Masker(store.token_counts, manifest["special_ids"], 4, size, 0, probability=0.9)
    drawn = {int(i) for block in range(60) for i in masker.mask(store.sequence(0), epoch=0, block=block)[0]}
    assert drawn == known | {2, 3, 4}


def test_sequences_in_which_nothing_can_be_masked(tokenizer, tmp_path, capsys):
    lines = ["the student learns what a teacher knows from soft targets"] * 40 + ["soft targets " * 20] * 10
    (tmp_path / "a.txt").write_text("\n".join(lines))
    manifest = prepare(
        [str(tmp_path / "a.txt")],
        tokenizer,
        tmp_path / "out",
        mode="lines",
        sequence_length=64,
        heldout_fraction=0.0,
        seed=0,
        workers=1,
    )
    lengths = {int(tokens): count for tokens, count in manifest["maskable"]["train"].items()}
    store = TokenDataset.open(tmp_path / "out")
    assert lengths == dict(
        zip(*map(np.ndarray.tolist, np.unique(store.maskable(np.arange(len(store))), return_counts=True)), strict=True)
    )
    recipe = Recipe()
    recipe.data.sequence_length = 64
    make_masker(store, recipe)
    assert capsys.readouterr().err == ""
    few = sum(count for tokens, count in lengths.items() if round(0.02 * tokens) == 0)
    recipe.data.mlm_probability = 0.02
    make_masker(store, recipe)
    assert f"of the {len(store)} train sequences of {store.path}, {few} have no token masked" in capsys.readouterr().err
    recipe.data.mlm_probability = 0.01
    with pytest.raises(
        UserError, match=r"data\.mlm_probability = 0\.01: .* none has a token masked, because none has more than"
    ):
        make_masker(store, recipe)
    recipe.data.sequence_length, recipe.data.mlm_probability = 16, 0.02
    with pytest.raises(
        UserError,
        match=r"= 0\.02: too small to mask any of the 14 tokens of a sequence \(data\.sequence_length = 16\); "
        r"use 0\.036 or more, which masks one",
    ):
        recipe.check()
    recipe.data.mlm_probability = 0.036
    recipe.check()


def test_an_interrupted_call_of_an_older_version_starts_over(tokenizer, tmp_path, monkeypatch):
    """The older version's pieces do not record what became of their characters."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 2000)
    (tmp_path / "a.txt").write_text("the student learns\n\n" * 500)
    building = tmp_path / ".out.building"
    (building / "piece-00000").mkdir(parents=True)
    (building / "plan.json").write_text(json.dumps([[], {}, {}]))
    manifest = prepare(
        [str(tmp_path / "a.txt")],
        tokenizer,
        tmp_path / "out",
        sequence_length=16,
        heldout_fraction=0.0,
        seed=0,
        workers=1,
    )
    assert (
        manifest["characters"]["read"] == 10_000
        and corpus_identity([str(tmp_path / "a.txt")], split_inputs([str(tmp_path / "a.txt")])) == manifest["corpus"]
    )


@pytest.mark.parametrize("name", ["b.txt.xz", "b.bz2", "notes.md", "wiki_00", "part-00000", "train.arrow"])
def test_files_of_a_folder_that_are_not_read_are_said(corpus, capsys, name):
    (corpus / name).write_bytes(b"much more than is in the other file")
    assert list(documents([str(corpus)])) == ["here"]
    stderr = capsys.readouterr().err
    assert (
        f"{corpus}: 1 of its files are not read (1 {Path(name).suffix or 'without a suffix'}), such as {name}; "
        in stderr
    )
    assert stderr.count("\n") == 1
    split_inputs([str(corpus)])
    assert not capsys.readouterr().err, "once, however often it is looked at"


def test_a_trace_of_other_files_and_what_is_about_a_corpus_is_not_said(corpus, capsys):
    (corpus / "a.txt").write_text("here " * 999)
    for name in ("README.md", "LICENSE", "SHA256SUMS", "_SUCCESS", ".hidden", "x.css"):
        (corpus / name).write_text("not text")
    split_inputs([str(corpus)])
    assert not capsys.readouterr().err


def test_a_link_to_nothing_of_another_kind_is_said(corpus, capsys):
    (corpus / "wiki.2023").symlink_to("/nowhere/store")
    split_inputs([str(corpus)])
    assert "1 of its files are not read (1 .2023), such as wiki.2023; " in capsys.readouterr().err


def test_a_pattern_that_matches_a_folder_reads_it_once(corpus):
    (corpus / "sub" / "b.txt").write_text("there")
    (corpus / "sub" / "deep").mkdir()
    (corpus / "sub" / "deep" / "c.txt").write_text("below")
    for pattern in ("*", "**", "**/*"):
        assert sorted(documents([f"{corpus}/{pattern}"])) == ["below", "here", "there"]
    assert list(documents([f"{corpus}/*.txt"])) == ["here"]


@pytest.mark.parametrize("given", ["#text", " #text", "a.txt#", "a.txt# "])
def test_a_name_or_column_that_is_not_there_is_asked_for(corpus, monkeypatch, given):
    monkeypatch.chdir(corpus)
    with pytest.raises(UserError, match="no file before the #|no column after the #|no such file|empty"):
        split_inputs([given])


def test_a_mark_in_the_name_of_a_folder_is_no_column(corpus):
    for name, text in (("data", "old"), ("data#v2", "new")):
        (corpus / name).mkdir()
        (corpus / name / "x.txt").write_text(text)
    assert list(documents([f"{corpus}/data#v2/*.txt"])) == list(documents([f"{corpus}/data#v2"])) == ["new"]
    with pytest.raises(UserError, match="data#v2/missing.txt: no such file"):
        split_inputs([f"{corpus}/data#v2/missing.txt"])
    (corpus / "c#1.txt").write_text("numbered")
    assert list(documents([f"{corpus}/c#*.txt"])) == ["numbered"]


def test_all_splits_of_a_saved_data_set_are_said(tmp_path, capsys):
    parts = {name: datasets.Dataset.from_dict({"text": [f"of {name}"]}) for name in ("test", "train")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert sorted(documents([str(tmp_path / "saved")])) == ["of test", "of train"]
    assert (
        "all of its splits are read: test, train; to read one of them, use "
        f"hf:{tmp_path / 'saved'}@train" in capsys.readouterr().err
    )
