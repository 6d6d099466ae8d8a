"""Test what is looked for before a checkpoint is loaded or converted."""

import json
import shutil
from collections import namedtuple

import pytest

from ds_distill.training import checkpoint
from ds_distill.utils.errors import UserError

Usage = namedtuple("Usage", "total used free")


def test_a_conversion_without_room_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "step-000000005"
    path.mkdir()
    for name, size in {"zero_pp_rank_0_mp_rank_00_optim_states.pt": 5, "mp_rank_00_model_states.pt": 3}.items():
        with (path / name).open("wb") as file:
            file.truncate(size << 20)  # sparse
    (path / "manifest.json").write_text(json.dumps({"groups": [["a", "b"], ["c"]]}))
    need = (2 * 5 + 2 * 3 << 20) + 4 * (64 << 10)
    for free in (need, need - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(1 << 40, 0, free))
        if free == need:
            checkpoint._check_room_to_convert(path)
        else:
            with pytest.raises(
                UserError, match=r"disk is full: converting step-000000005 .* takes 16\.2 MiB .* are free"
            ):
                checkpoint._check_room_to_convert(path)


def test_checkpoints_are_listed_by_step(tmp_path):
    for name in ("step-1000000000", "step-000000020", "step-3", "step-000000030.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000000040").write_text("a note")
    (tmp_path / "step-000000050").symlink_to("nowhere")  # its disk is not there: never start over silently
    assert list(checkpoint.list_checkpoints(tmp_path)) == [3, 20, 50, 10**9]


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "null", "{}", '{"files": {}, "shape": {"ranks": 1}, "groups": [["a"]]}', '{"files": {"x": [1, 2]}}'],
)
def test_a_manifest_without_sense_is_damage(tmp_path, monkeypatch, manifest):
    monkeypatch.setattr(checkpoint, "all_gather_object", lambda mine: [mine])
    monkeypatch.setattr(checkpoint.torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(checkpoint.torch.distributed, "get_world_size", lambda: 1)
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "manifest.json").write_text(manifest)
    assert "its manifest.json" in checkpoint._find_corruption(tmp_path)
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {"files": {"x": list(checkpoint._checksum(tmp_path / "x"))}, "shape": {"ranks": 1}, "groups": [["a"]]}
        )
    )
    assert checkpoint._find_corruption(tmp_path) is None
