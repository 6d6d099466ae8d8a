"""Compiled code is kept where one host alone writes it."""

import os
import tempfile

import pytest

from ds_distill.builds import cache_folder, deepspeed_extensions
from ds_distill.builds.cache_folder import host_folder, is_on_network
from ds_distill.builds.inductor_cache import keep_cache_in_environment

MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/export /mnt nfs4 rw,vers=4.2 0 0
mds@tcp:/home /mnt/home lustre rw 0 0
gpfs0 /gpfs gpfs rw 0 0
sshfs /remote fuse.sshfs rw 0 0
/dev/nvme0n1 /mnt/local\\040disk ext4 rw 0 0
"""


@pytest.mark.parametrize(
    "path, shared",
    [
        ("/opt/.venv", False),
        ("/mnt/.venv", True),
        ("/mnt/home/project/.venv", True),
        ("/mnt/local disk/.venv", False),
        ("/mntelsewhere", False),
        ("/gpfs/u/.venv", True),
    ],
)
def test_the_deepest_mount_decides(tmp_path, path, shared):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert is_on_network(path, str(tmp_path / "mounts")) == shared


def test_a_host_has_its_own_folders_where_the_environment_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(cache_folder.sys, "prefix", str(tmp_path / "venv"))
    # it keeps what it has computed, which would then be of this environment in all later tests
    monkeypatch.setattr(deepspeed_extensions, "_machine_key", lambda: "machine")
    (tmp_path / "venv").mkdir()
    for shared in (False, True):
        home = tmp_path / ("tmp" if shared else "venv")
        for module in ("deepspeed_extensions", "inductor_cache"):
            monkeypatch.setattr(f"ds_distill.builds.{module}.is_on_network", lambda _, answer=shared: answer)
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        keep_cache_in_environment()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(home))
        assert deepspeed_extensions.extensions_folder().is_relative_to(home)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "given"))
    assert deepspeed_extensions.extensions_folder().parent == tmp_path / "given", "what the user sets counts"


def test_a_folder_that_others_may_write_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = host_folder("kernels")
    assert own == host_folder("kernels") and own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    monkeypatch.setattr(cache_folder, "_private", {})
    assert host_folder("kernels") != own and host_folder("kernels") == host_folder("kernels")
    own.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "elsewhere")
    assert host_folder("kernels") not in (own, tmp_path / "elsewhere")
