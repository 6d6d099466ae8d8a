"""Save on several ranks: first there is no place, then a rank's disk is full while it writes, then none is.

Rank 0 prints a JSON line with what each rank was told, and what was published.
"""

import errno
import json
import sys
from pathlib import Path
from unittest import mock

import torch

from ds_distill.distributed.process_group import all_gather_object, start_distributed
from ds_distill.losses.objective import Objective
from ds_distill.recipe import Losses, Training
from ds_distill.training.checkpoint_writer import CheckpointWriter, MemoryFile
from ds_distill.training.engine import Engine
from ds_distill.utils.errors import UserError
from tests.distributed.step_worker import random_encoder


def train(writer: CheckpointWriter, until) -> None:
    """Do as the trainer's steps do until `until()` holds on every rank."""
    ended = False
    while not ended:
        flags = torch.tensor([float(writer.is_written), float(writer.has_failed), float(until())])
        torch.distributed.all_reduce(flags)
        written, failed, over = flags.tolist()
        world = torch.distributed.get_world_size()
        if failed:
            writer.wait()
        if written == world:
            writer.publish()
        ended = over == world


def main() -> None:
    folder = Path(sys.argv[1])
    rank, world = start_distributed()
    objective = Objective(random_encoder(), Losses().without_teacher(), world)
    settings = Training(global_batch_size=world, micro_batch_size=1, deepspeed="ds_configs/deepspeed/zero2.json")
    device = torch.device("cpu")
    engine = Engine(objective, settings, accumulation=1, total_steps=1, device=device, dtype=torch.float32)
    writer, told = CheckpointWriter(engine, folder, keep=2), []
    if rank == 0:
        folder.write_text("")  # nothing can be made in a file
    try:
        writer.begin(1, {})
    except UserError as error:
        told.append(str(error))
    if rank == 0:
        folder.unlink()
    for broken in range(world):
        full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        with mock.patch.object(MemoryFile, "move_to", full if rank == broken else MemoryFile.move_to):
            writer.begin(1, {})
            try:
                train(writer, lambda: False)
            except UserError as error:
                told.append(str(error))
    nothing = not list(folder.iterdir())
    own: list[str] = []
    move = MemoryFile.move_to

    def note(file: MemoryFile, path: Path) -> tuple[int, int]:
        own.append(path.name)
        return move(file, path)

    with mock.patch.object(MemoryFile, "move_to", note):
        writer.begin(2, {"loss": 0.5})
        train(writer, lambda: (folder / "step-000000002").exists())
        writer.begin(3, {})  # without a step in between
        saved = writer.wait()
    wrote = all_gather_object(own)
    if rank == 0:
        assert saved is not None and writer.published() == saved
        result = {"told": told, "nothing": nothing, "wrote": wrote, "published": saved.path.name, "bytes": saved.bytes}
        print(json.dumps(result | {"state": sorted(path.name for path in saved.path.iterdir())}))
    else:
        assert saved is None and len(told) == world + 1
    engine.destroy()


if __name__ == "__main__":
    main()
