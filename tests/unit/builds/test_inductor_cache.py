"""Test torch.compile after a process that was killed while it compiled."""

import fcntl
import subprocess

import pytest

from ds_distill.builds.fused_adam import has_compiler
from ds_distill.builds.inductor_cache import remove_partial_libraries
from tests.start import Process


def compile_something(cache) -> subprocess.CompletedProcess:
    return Process("tests.unit.training.compile_worker", TORCHINDUCTOR_CACHE_DIR=cache).wait()


@pytest.mark.long
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_half_written_libraries_are_compiled_anew(tmp_path):
    first = compile_something(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    libraries = sorted(tmp_path.glob("??/*.so"))
    assert libraries
    whole = {file: file.stat().st_size for file in libraries}
    for number, file in enumerate(libraries):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * number // (len(libraries) + 1)])
    again = compile_something(tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("is compiled again") == len(libraries)
    assert {file: file.stat().st_size for file in libraries} == whole


def test_a_library_that_is_being_written_is_left_alone(tmp_path):
    for name in ("locked", "dead"):
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / f"{name}.main.so").write_bytes(b"\x7fELF\x02\x01" + bytes(100))
    (tmp_path / "locks").mkdir()
    with open(tmp_path / "locks" / "locked.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as Inductor's lock library does
        assert [file.name for file in remove_partial_libraries(tmp_path)] == ["dead.main.so"]
    assert [file.name for file in remove_partial_libraries(tmp_path)] == ["locked.main.so"]
