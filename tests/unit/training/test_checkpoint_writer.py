"""What is written later is what was there when it was saved, byte for byte, with its checksum."""

import os
import zlib
from types import SimpleNamespace

import pytest
import torch

from ds_distill.training import checkpoint_writer
from ds_distill.training.checkpoint_writer import MemoryCheckpointEngine, MemoryFile

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
