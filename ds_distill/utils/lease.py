"""The lock on a run's folder: flock, and a lease that shows whether the lock's holder still lives.

Over NFSv3 a lock stays when its host dies. So the holder renews a lease, a small file, and a job that
finds the folder locked looks whether it changes. Only the changes count, over the clock of the job
that looks; the clocks of two hosts are never compared. A lease has a number. To take a folder over is
to create the file of the next number, which only one job can, and to remove the old one, by which a
holder that was only stopped notices that it has lost.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, Self

from ds_distill.utils.console import log
from ds_distill.utils.errors import LOST_STATUS, UserError
from ds_distill.utils.progress import note_progress

RENEW = 10.0  # seconds between two renewals of a lease
EXPIRE = 180.0  # seconds without one after which the holder counts as dead
LEASE = ".lease-"  # begins the name of a lease's file
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without flock


def boot_id() -> str:
    """Return what tells this machine, since its last start, from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def pid_namespace() -> str:
    """Return what tells the numbers of this process's container from those of other containers of the machine."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class Lease(NamedTuple):
    """A lease as it stands in its file.

    Attributes:
        number: Its number.
        content: The bytes of its file.
    """

    number: int
    content: bytes

    def facts(self) -> dict[str, Any]:
        """Return the values that `FolderLock` has written; nothing of a lease that is being written."""
        try:
            facts = json.loads(self.content)
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}


class FolderLock:
    """A lock that lets one process at a time use a folder; it is held while its block runs.

    Args:
        folder: The folder.
        renew: Seconds between two renewals of the lease.
        expire: Seconds without one after which a holder on another machine counts as dead.
    """

    def __init__(self, folder: Path, renew: float = RENEW, expire: float = EXPIRE):
        self.folder, self.renew, self.expire = folder, renew, expire
        self.path, self.id = folder / ".lock", uuid.uuid4().hex
        self.file: IO[str] | None = None
        self.lease: Path | None = None
        self._renewals, self._ended = 0, threading.Event()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            UserError: Another job holds it.
        """
        while not self._take():
            pass
        threading.Thread(target=self._keep, name="lease", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self.lease is not None and self._is_mine():
            self.lease.unlink(missing_ok=True)
        if self.file is not None:
            self.file.close()

    def check(self) -> None:
        """Raise UserError where another job has taken the folder over; nothing may be written there then."""
        if not self._is_mine():
            raise UserError(self._describe_loss())

    def _take(self) -> bool:
        """Try to take the lock; return False where it must be tried again, because it has just been released."""
        file: IO[str] = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked, flock_works = True, True
        except BlockingIOError:
            locked, flock_works = False, True
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            locked = flock_works = False
        before = self._newest()
        if locked:
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):  # another job has replaced it
                file.close()
                return False
        elif before is None:
            if flock_works:
                self._refuse(file, before)
        elif before.facts().get("boot") == boot_id() and (flock_works or _is_visible(before.facts())):
            if flock_works or _is_alive(before.facts()):
                self._refuse(file, before)
        elif not self._outlasts(before, file):
            file.close()
            return False
        self._claim(before, file)
        if not locked and flock_works:
            file.close()
            file = self._replace_lock_file()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self.file = file
        return True

    def _outlasts(self, lease: Lease, file: IO[str]) -> bool:
        """Return whether the holder of a lease is dead; False where it has just released it.

        Raises:
            UserError: The lease changes, so its holder lives.
        """
        facts = lease.facts()
        holder = f"process {facts.get('pid', 'unknown')} on {facts.get('host', 'an unknown host')}"
        log(f"{self.folder}: locked by {holder}; looking for up to {self.expire:.0f} s whether it is alive …")
        unchanged, pause = 0.0, min(1.0, self.renew / 4)
        looked = time.monotonic()
        while unchanged < self.expire:
            time.sleep(pause)
            note_progress()
            now = self._newest()
            if now is None:
                return False
            if now != lease:
                self._refuse(file, now)
            # where this process, or the file system, stood still, the holder's renewals may have too
            unchanged += min(time.monotonic() - looked, 2 * pause)
            looked = time.monotonic()
        log(f"{self.folder}: {holder} has not renewed its lease for {self.expire:.0f} s: this job takes over its lock")
        return True

    def _claim(self, before: Lease | None, file: IO[str]) -> None:
        """Create the next lease, which one job alone can, and remove the earlier ones."""
        number = before.number + 1 if before else 1
        path = self.folder / f"{LEASE}{number:06d}"
        try:
            with open(path, "xb") as lease:
                lease.write(self._content())
                lease.flush()
                os.fsync(lease.fileno())
        except FileExistsError:
            self._refuse(file, self._newest())
        self.lease = path
        for earlier in self.folder.glob(f"{LEASE}*"):
            if earlier.name < path.name:
                earlier.unlink(missing_ok=True)

    def _replace_lock_file(self) -> IO[str]:
        """Put a new lock file, locked by this process, in the place of one whose lock may come free at any time."""
        beside = self.path.with_name(f".lock-{self.id}")
        file = open(beside, "a+", encoding="utf-8")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(beside, self.path)
        return file

    def _newest(self) -> Lease | None:
        for path in sorted(self.folder.glob(f"{LEASE}*"), reverse=True):
            try:
                return Lease(int(path.name.removeprefix(LEASE)), path.read_bytes())
            except (FileNotFoundError, ValueError):
                continue  # removed in this moment, or not a lease
        return None

    def _refuse(self, file: IO[str], lease: Lease | None) -> NoReturn:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        facts = lease.facts() if lease else {}
        if "pid" in facts:
            holder = f"process {facts['pid']} on {facts['host']}"
        raise UserError(
            f"{self.folder}: in use by another job ({holder or 'unknown'}); wait until it has finished, or choose "
            "another --output"
        )

    def _content(self) -> bytes:
        facts = {"id": self.id, "host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id()}
        facts |= {"started": _start_of(os.getpid()), "pids": pid_namespace()}
        return json.dumps(facts | {"renewals": f"{self._renewals:012d}"}).encode()

    def _is_mine(self) -> bool:
        assert self.lease is not None
        try:
            return self.id.encode() in self.lease.read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def _keep(self) -> None:
        """Renew the lease until the block ends; end the process where another job has taken the folder over."""
        assert self.lease is not None
        while not self._ended.wait(self.renew):
            try:
                if not self._is_mine():
                    if not self._ended.is_set():
                        print(f"\nds-distill: {self._describe_loss()}", file=sys.stderr, flush=True)
                        os._exit(LOST_STATUS)
                    return
                self._renewals += 1
                with open(self.lease, "r+b") as file:  # written in place, since a file of that name may never come anew
                    file.write(self._content())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                continue  # a disk that is full or away for a moment; whoever looks waits for minutes

    def _describe_loss(self) -> str:
        return (
            f"{self.folder}: another job has taken over this folder, because this one had not renewed its lease for "
            f"{self.expire:.0f} s; this job ends and writes nothing more there"
        )


def _is_visible(facts: dict[str, Any]) -> bool:
    """Return whether a holder on this machine is in this process's container, where its number means the same."""
    return facts.get("pids", pid_namespace()) == pid_namespace()


def _is_alive(facts: dict[str, Any]) -> bool:
    """Return whether a holder in this container lives. Its number may be another process's since it ended."""
    pid = facts.get("pid") or 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_of(pid) in (None, facts.get("started", _start_of(pid)))


def _start_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks of this machine; None where that cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
