"""A real Slurm of two nodes on this machine: its controller, two of its daemons, and munge."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tests.start import ROOT, environment_of, free_port, wait_for

PATHS = os.environ["PATH"] + ":/usr/sbin:/sbin"
NEEDED = ("slurmctld", "slurmd", "srun", "munged")


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    missing = [name for name in NEEDED if not shutil.which(name, path=PATHS)]
    return f"Slurm needs {', '.join(missing)} (on Debian and Ubuntu: slurm-wlm, munge)" if missing else None


class Slurm:
    """A controller and the nodes n0 and n1 of two processors and eight imaginary GPUs each."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.chmod(0o755)  # munge takes no key that others could change
        ports = [free_port() for _ in range(3)]
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        socket_of_munge = folder / "munge.socket"
        for number in range(8):  # Slurm wants each GPU to be a file
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"NodeName=n[0-1] Name=gpu File={folder}/gpu[0-7]\n")
        (folder / "slurm.conf").write_text(
            f"ClusterName=test\nSlurmctldHost={socket.gethostname()}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n"
            f"AuthType=auth/munge\nAuthInfo=socket={socket_of_munge}\nCredType=cred/munge\n"
            f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool-%n\n"
            f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd-%n.pid\n"
            f"SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd-%n.log\nSlurmctldPort={ports[0]}\n"
            "ProctrackType=proctrack/pgid\nTaskPlugin=task/none\nSelectType=select/cons_tres\n"
            "SelectTypeParameters=CR_CPU\nReturnToService=2\nMpiDefault=none\nJobRequeue=1\nGresTypes=gpu\n"
            + "".join(
                f"NodeName=n{i} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
                "CPUs=2 RealMemory=8000 Gres=gpu:8\n"
                for i, port in enumerate(ports[1:])
            )
            + "PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE\n"
        )
        (folder / "state").mkdir()
        self.environment = environment_of(
            PATH=PATHS, SLURM_CONF=str(folder / "slurm.conf"), DS_DISTILL_PYTHON=sys.executable
        )
        self.daemons = [
            self._start("munged", "-F", "-f", f"--key-file={key}", f"--socket={socket_of_munge}", *self._files("munge"))
        ]
        wait_for(socket_of_munge.exists, *self.daemons)
        self.daemons.append(self._start("slurmctld", "-D", "-c"))
        for name in ("n0", "n1"):
            (folder / f"spool-{name}").mkdir()
            self.daemons.append(self._start("slurmd", "-D", "-N", name))
        wait_for(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", *self.daemons, pause=0.5)

    def _files(self, name: str) -> list[str]:
        kinds = {"pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={self.folder}/{name}.{suffix}" for option, suffix in kinds.items()]

    def _start(self, *words: str) -> subprocess.Popen:
        with (self.folder / f"{words[0]}.out").open("a") as log:
            return subprocess.Popen([*words], env=self.environment, stdout=log, stderr=log)

    def ask(self, *words) -> str:
        done = subprocess.run([*map(str, words)], env=self.environment, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    def start(self, *words) -> subprocess.Popen:
        return subprocess.Popen(
            [*map(str, words)],
            env=self.environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def state(self, job: str) -> str:
        return self.ask("squeue", "-h", "-j", job, "-o", "%T")

    def close(self) -> None:
        self.ask("scancel", "--signal=KILL", "--full", "-u", "root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait()
