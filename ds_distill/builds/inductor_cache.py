"""torch.compile's cache on disk, kept free of partial files that killed compilers left in it."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from ds_distill.builds.cache_folder import environment_folder, host_folder, is_on_network
from ds_distill.builds.elf import is_complete_elf


def keep_cache_in_environment() -> None:
    """Have torch.compile keep its files in the environment's own folder, where there is one, instead of below /tmp.

    An environment that hosts share is an exception: each host then has a folder of its own.
    Call it before torch is imported, which reads the variable once.
    """
    folder = environment_folder("torch_inductor")
    if folder is not None and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(host_folder("torch_inductor") if is_on_network(folder) else folder)


def remove_partial_libraries(cache: Path | None = None) -> list[Path]:
    """Remove the libraries of torch.compile's cache that were not written to their end; return them.

    Inductor (torch 2.13) has the compiler write a library where it will be loaded from, and never
    compiles what is there already. After a kill at the wrong moment torch.compile would fail in
    this environment forever. Inductor holds a lock per library while it is written, and the lock
    ends with its process. Locked libraries are left alone.

    Args:
        cache: The cache's folder; by default the one that this process uses.
    """
    if cache is None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cache = Path(cache_dir())
    removed = []
    for file in sorted(file for kind in ("*.so", "*.o") for file in cache.glob(f"??/{kind}")):
        if is_complete_elf(file):
            continue
        (cache / "locks").mkdir(exist_ok=True)
        try:
            with FileLock(str(cache / "locks" / f"{file.name.split('.')[0]}.lock"), timeout=0):
                if file.exists() and not is_complete_elf(file):
                    file.unlink()
                    removed.append(file)
        except Timeout:  # its compiler is still running
            continue
    return removed
