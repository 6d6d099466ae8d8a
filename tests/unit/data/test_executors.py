"""Test the preparation of a corpus by datatrove's executors, where they are installed."""

import pytest

from ds_distill.data import executors, sources
from ds_distill.data.executors import run_executor
from ds_distill.data.prepare import Preparation
from ds_distill.utils.errors import UserError
from tests.unit.data.test_prepare import files, some_documents
from tests.unit.data.test_prepare import tokenizer as tokenizer


@pytest.fixture
def make(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 4_000)
    documents = some_documents(200)
    (tmp_path / "a.txt").write_text("\n\n".join([*documents, *documents[:50]]))
    return lambda name: Preparation(
        [str(tmp_path / "a.txt")],
        tokenizer,
        tmp_path / name,
        sequence_length=16,
        heldout_fraction=0.2,
        seed=3,
        drop_duplicates=True,
    )


def test_the_local_executor_makes_what_one_call_makes(make, tmp_path):
    pytest.importorskip("datatrove", reason="needs the extra executors")
    make("one").run(1)
    run_executor(make("many"), "local", 3, {"workers": 2})
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert (tmp_path / "many-logs" / "prepare").is_dir()


def test_ray_makes_what_one_call_makes(make, tmp_path, monkeypatch):
    pytest.importorskip("datatrove", reason="needs the extra executors")
    ray = pytest.importorskip("ray", reason="needs the extra executors")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    make("one").run(1)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        run_executor(make("many"), "ray", 2, {"mem_per_cpu_gb": 0.1})
        assert files(tmp_path / "many") == files(tmp_path / "one")
    finally:
        ray.shutdown()


def test_what_is_missing_is_named(make, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datatrove.executor", None)
    with pytest.raises(UserError, match=r"--executor slurm: datatrove.* is not installed; install it: pip install"):
        run_executor(make("many"), "slurm", 2, {})


def test_an_option_that_the_executor_does_not_have_is_refused(make):
    pytest.importorskip("datatrove", reason="needs the extra executors")
    with pytest.raises(UserError, match=r"--executor_options {'partition': 'cpu'}: .*time.*SlurmPipelineExecutor"):
        run_executor(make("many"), "slurm", 2, {"partition": "cpu"})
    assert executors.EXECUTORS == ("local", "slurm", "ray")
