"""Test what is looked for before a checkpoint is loaded or converted."""

import json
import shutil
from collections import namedtuple

import pytest
import torch

from ds_distill.jobs.export import export_run
from ds_distill.training import checkpoint
from ds_distill.training.weights import load_checkpoint_weights
from ds_distill.utils.errors import UserError

MANIFEST = {"files": {"x": [1, 2]}, "shape": {"ranks": 1}, "groups": [["a"]]}
Usage = namedtuple("Usage", "total used free")


def test_a_conversion_without_room_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "step-000000005"
    path.mkdir()
    for name, size in {"zero_pp_rank_0_mp_rank_00_optim_states.pt": 5, "mp_rank_00_model_states.pt": 3}.items():
        with (path / name).open("wb") as file:
            file.truncate(size << 20)  # sparse
    (path / "manifest.json").write_text(json.dumps(MANIFEST | {"groups": [["a", "b"], ["c"]]}))
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
def test_a_manifest_without_sense_is_damage(tmp_path, manifest):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "manifest.json").write_text(manifest)
    assert "its manifest.json" in checkpoint.find_damage(tmp_path)
    with pytest.raises(UserError, match="its manifest.json"):
        checkpoint.read_manifest(tmp_path)
    files = {"x": list(checkpoint._checksum(tmp_path / "x"))}
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"files": files}))
    assert checkpoint.find_damage(tmp_path) is None


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"y"), lambda file: file.unlink()])
def test_no_weights_are_exported_from_a_damaged_checkpoint(tmp_path, damage):
    file = tmp_path / "mp_rank_00_model_states.pt"
    file.write_bytes(b"x")
    text = json.dumps(MANIFEST | {"files": {file.name: list(checkpoint._checksum(file))}})
    (tmp_path / "manifest.json").write_text(text)
    damage(file)
    with pytest.raises(UserError, match=f"is damaged .{file.name} .*; export another checkpoint"):
        load_checkpoint_weights(tmp_path, torch.nn.Module())


@pytest.mark.parametrize("content", [None, "", "[]"])
def test_a_run_whose_record_is_damaged_is_not_exported(tmp_path, content):
    (tmp_path / "checkpoints" / "step-000000001").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="no run with a checkpoint" if content is None else "run.json is damaged"):
        export_run(tmp_path, tmp_path / "out", None)
