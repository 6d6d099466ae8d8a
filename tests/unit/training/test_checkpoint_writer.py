"""What is written later is what was there when it was saved, byte for byte, with its checksum."""

import errno
import os
import zlib
from types import SimpleNamespace

import pytest
import torch

from ds_distill.training import checkpoint_writer
from ds_distill.training.checkpoint_writer import CheckpointWriter, MemoryCheckpointEngine, MemoryFile

CONFIG = SimpleNamespace(checkpoint_config={"checkpoint_serialization": True})


def test_a_file_holds_the_moment_it_was_saved(tmp_path):
    flat = torch.arange(1000.0)
    engine = MemoryCheckpointEngine(CONFIG)
    state = {"one": flat[:600], "two": flat[600:].view(20, 20), "step": 3, "nested": [{"rates": (0.1, 0.2)}]}
    engine.save(state, str(tmp_path / "state.pt"))
    flat.zero_()
    state["step"] = 4
    assert not list(tmp_path.iterdir()), "nothing is written yet"
    files = engine.take()
    assert engine.take() == {}
    size, crc = files[tmp_path / "state.pt"].move_to(tmp_path / "state.pt")
    content = (tmp_path / "state.pt").read_bytes()
    assert (size, crc) == (len(content), zlib.crc32(content)) and size < 1.5 * 4000, "a shared storage is saved once"
    loaded = engine.load(str(tmp_path / "state.pt"))
    assert torch.equal(loaded["one"], torch.arange(600.0))
    assert torch.equal(loaded["two"], torch.arange(600.0, 1000.0).view(20, 20))
    assert loaded["one"].untyped_storage().data_ptr() == loaded["two"].untyped_storage().data_ptr()
    assert (loaded["step"], loaded["nested"]) == (3, [{"rates": (0.1, 0.2)}])
    assert torch.serialization.get_crc32_options(), "as it was"


def test_a_disk_that_takes_little_at_a_time_gets_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "CHUNK", 1000)
    read, write = os.pipe()  # a pipe takes what fits
    os.set_blocking(write, True)
    content = bytes(range(256)) * 100
    file = MemoryFile()
    for start in range(0, len(content), 7000):
        file.write(memoryview(content)[start : start + 7000])
    monkeypatch.setattr(os, "fsync", lambda _: None)
    assert file.move_to(f"/dev/fd/{write}") == (len(content), zlib.crc32(content))
    os.close(write)
    with open(read, "rb") as stream:
        assert stream.read() == content


def test_an_error_in_the_background_is_the_callers():
    job = checkpoint_writer._in_background(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.result()


def test_what_cannot_be_removed_does_not_end_a_run_and_links_stay(tmp_path, monkeypatch, capsys):
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    for path in (*(folder / f"step-00000000{step}" for step in (2, 3, 4)), elsewhere, folder / ".partial" / "state"):
        path.mkdir(parents=True)
    (folder / "step-000000001").symlink_to(elsewhere)
    (folder / "step-000000009").write_text("a note")
    remove = checkpoint_writer.remove

    def held(path):
        if path.name.endswith("2"):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path)

    monkeypatch.setattr(checkpoint_writer, "remove", held)
    writer = CheckpointWriter.__new__(CheckpointWriter)
    writer.folder, writer.keep, writer._began, writer._manifest = folder, 2, 0.0, {"step": 5}
    assert writer._publish({}).step == 5
    left = sorted(path.name for path in folder.iterdir())
    assert left == [f"step-00000000{step}" for step in (1, 2, 4, 5, 9)] and elsewhere.is_dir()
    assert "step-000000002: Directory not empty" in capsys.readouterr().err
