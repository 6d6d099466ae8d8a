"""Ranks write their own files of a checkpoint in the background, and agree on how it went."""

import json

import pytest

from tests.end_to_end.test_resume import assert_sound
from tests.start import run_ranks


@pytest.mark.promise("A rank that cannot write its part of a checkpoint in the background ends the job on every rank")
@pytest.mark.promise("Every rank writes, sums and syncs its own files of a checkpoint, while the training continues")
def test_ranks_write_their_own_files_and_agree(tmp_path):
    world, folder = 2, tmp_path / "checkpoints"
    output = run_ranks(world, "tests.distributed.saving_worker", folder)
    result = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    place, *full = result["told"]
    assert "Not a directory; choose another --output" in place
    assert len(full) == world and all("the disk is full" in told for told in full)
    assert result["nothing"] and result["published"] == "step-000000003"
    shards = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(world)]
    model = "mp_rank_00_model_states.pt"
    mine = [sorted(set(names) - {"manifest.json"}) for names in result["wrote"]]
    assert mine == [sorted([model, shards[0]]), [shards[1]]]
    assert result["state"] == sorted(["manifest.json", model, *shards])
    published = sorted(folder.iterdir())
    assert [path.name for path in published] == ["step-000000002", "step-000000003"], "no partial one is left"
    for path in published:
        assert_sound(path)
    assert result["bytes"] == sum(file.stat().st_size for file in published[-1].iterdir() if file.suffix == ".pt")
