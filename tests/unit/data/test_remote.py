"""Test the reading of files of other file systems."""

import gzip
import json
import sys
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from ds_distill.data import sources
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.prepare import Preparation
from ds_distill.data.readers import documents, read
from ds_distill.data.sources import check_inputs, corpus_identity, split_inputs
from ds_distill.data.worker import PieceWorker
from ds_distill.utils.errors import UserError
from tests.unit.data.test_prepare import files, some_documents
from tests.unit.data.test_prepare import tokenizer as tokenizer

TEXTS = ["The first document.", "A second, with a comma\nand a line end.", "Third: ünïcode 中文"]


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def fill(files, root):
    files.makedirs(f"{root}/deep", exist_ok=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    files.pipe(f"{root}/a.txt", "\n\n".join(TEXTS).encode())
    files.pipe(f"{root}/b.jsonl.gz", gzip.compress(rows))
    files.pipe(f"{root}/deep/c.jsonl", rows)
    zst = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(zst, "zstd") as stream:
        stream.write(rows)
    files.pipe(f"{root}/deep/d.jsonl.zst", zst.getvalue().to_pybytes())
    with files.open(f"{root}/deep/e.parquet", "wb") as stream:
        pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), stream, row_group_size=1)
    files.pipe(f"{root}/deep/picture.png", b"\x89")
    files.pipe(f"{root}/deep/.hidden.txt", b"hidden")


def test_every_kind_of_file_is_read_from_another_file_system(memory, capsys):
    fill(memory, "/bucket")
    for name in ("a.txt", "b.jsonl.gz", "deep/c.jsonl", "deep/d.jsonl.zst", "deep/e.parquet#body"):
        assert list(documents([f"memory://bucket/{name}"])) == TEXTS, name
    memory.rm("/bucket/deep/e.parquet")
    assert list(documents(["memory://bucket"])) == TEXTS * 4
    assert "1 of its files are not read, such as picture.png" in capsys.readouterr().err
    assert list(documents(["memory://bucket/*.txt", "memory://bucket/*/*.zst"])) == TEXTS * 2


def test_a_remote_file_is_divided_like_one_on_the_disk(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 10_000)
    data = "\n\n".join(some_documents(600)).encode()
    memory.pipe("/bucket/a.txt", data)
    (tmp_path / "a.txt").write_bytes(data)
    there, here = split_inputs(["memory://bucket/a.txt"]), split_inputs([str(tmp_path / "a.txt")])
    assert len(there) > 5 and [(p.start, p.stop) for p in there] == [(p.start, p.stop) for p in here]
    assert [d for p in there for d in read(p)] == [d for p in here for d in read(p)]
    assert content_fingerprint(there) == content_fingerprint(here)
    assert corpus_identity(["memory://bucket/a.txt"], there) == [["memory://bucket/a.txt", len(data)]]


def test_prepared_data_is_the_same_and_resumes_unless_the_file_has_changed(tokenizer, tmp_path, monkeypatch):
    """Worker processes read it too: a file system of the disk stands for one of the network."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 10_000)
    text = "\n\n".join(some_documents(600))
    (tmp_path / "a.txt").write_text(text)

    def preparation(given, name):
        return Preparation([given], tokenizer, tmp_path / name, sequence_length=16, heldout_fraction=0.2, seed=3)

    preparation(str(tmp_path / "a.txt"), "here").run(1)
    url, done = f"file://{tmp_path}/a.txt", []

    def count_or_stop(self, piece, folder, tick, work=PieceWorker.__call__):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(folder)
        work(self, piece, folder, tick)

    with monkeypatch.context() as patch:
        patch.setattr(PieceWorker, "__call__", count_or_stop)
        with pytest.raises(KeyboardInterrupt):
            preparation(url, "there").run(1)
        stamps = {folder: folder.stat().st_ino for folder in done}
    preparation(url, "there")._resume_or_reset()
    assert {folder: folder.stat().st_ino for folder in done} == stamps
    preparation(url, "there").run(2)
    written, expected = files(tmp_path / "there"), files(tmp_path / "here")
    assert {name for name in written if written[name] != expected[name]} == {
        next(n for n in written if n.name == "manifest.json")
    }
    plan = preparation(url, "there")._plan()
    (tmp_path / "a.txt").write_text(text.replace("teacher", "student"))
    assert preparation(url, "there")._plan() != plan


class Handler(SimpleHTTPRequestHandler):
    """Serves ranges, as the servers of data sets do."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        span = self.headers.get("Range")
        data = open(self.translate_path(self.path), "rb").read()
        first, last = (span.removeprefix("bytes=").split("-")) if span else ("0", "")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(part)))
        if span:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


def test_files_are_read_from_a_web_server(tmp_path):
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    fill(fsspec.filesystem("file"), str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        for name in ("a.txt", "b.jsonl.gz?download=true", "deep/d.jsonl.zst", "deep/e.parquet#body"):
            assert list(documents([f"{root}/{name}"])) == TEXTS, name
        with pytest.raises(UserError, match=r"none\.txt: no .*; check the address|none\.txt: cannot be reached"):
            list(documents([f"{root}/none.txt"]))
        assert urllib.request.urlopen(f"{root}/a.txt").status == 200
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "given, message",
    [
        ("memory://bucket/none.txt", r"none\.txt: no \.txt, .* file .* is there; check the address"),
        ("memory://bucket/*.nothing", "is there; check the address"),
        ("nosuch://bucket/a.txt", "a.txt: cannot be reached .*nosuch.*; check the address"),
    ],
)
def test_what_is_missing_or_cannot_be_reached_is_one_sentence(memory, given, message):
    with pytest.raises(UserError, match=message) as error:
        check_inputs([given])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url, package", [("s3://bucket/a.txt", "s3fs"), ("gs://bucket/a.txt", "gcsfs"), ("https://x.invalid/a", "aiohttp")]
)
def test_a_package_that_is_missing_is_named(monkeypatch, url, package):
    for name in (package, "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(UserError, match=rf"is not installed; install {package}: pip install {package}"):
        check_inputs([url])
