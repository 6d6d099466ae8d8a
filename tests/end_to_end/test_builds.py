"""Compilers that are killed leave nothing behind that stops a later run."""

import random
import time

import pytest

from tests.start import Process, wait_for

OFFLOAD = ["--training.deepspeed", "ds_configs/deepspeed/zero2_offload.json", "--training.compile", "off"]
COMPILED = ["--training.optimizer", "torch", "--training.compile", "on"]


@pytest.mark.long  # each of DeepSpeed's extensions takes a minute; unit tests kill a small one
@pytest.mark.promise("A run that is killed while DeepSpeed or torch.compile compiles does not stop a later one")
@pytest.mark.parametrize(
    "variable, files, options",
    [("TORCH_EXTENSIONS_DIR", "**/build.ninja", OFFLOAD), ("TORCHINDUCTOR_CACHE_DIR", "??/*.cpp", COMPILED)],
)
def test_killed_while_it_compiles(world, common, tmp_path, record_property, variable, files, options):
    cache = tmp_path / "cache"
    words = ["distill", "--teacher", world / "teacher", *common, *options, "--output", tmp_path / "out"]
    for kills in range(1, 4):
        run = Process("ds_distill", *words, **{variable: cache})
        seen = set(cache.glob(files))
        wait_for(lambda run=run, seen=seen: run.poll() is not None or set(cache.glob(files)) - seen)
        time.sleep(random.uniform(0, 10))
        run.kill()
        record_property("kills", kills)
    done = Process("ds_distill", *words, **{variable: cache}).wait()
    assert done.returncode == 0, done.stderr[-3000:]
