"""Environments for the client programs, with packages from the index; each is made once and used again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 1800


class NotRun(Exception):
    """The reason, in one sentence, why a client cannot be tried on this machine."""


@dataclass(frozen=True)
class Environment:
    """Packages that are installed together.

    Args:
        name: The name of the environment's folder.
        packages: pip requirements, or npm's NAME@VERSION.
        installer: "pip" gives a virtual environment of this Python, "npm" a folder with
            node_modules.
    """

    name: str
    packages: tuple[str, ...]
    installer: Literal["pip", "npm"] = "pip"

    @property
    def stamp(self) -> str:
        """Return the text that an environment on disk must have been made from to be used again."""
        python = f"python {sys.version_info.major}.{sys.version_info.minor}" if self.installer == "pip" else "npm"
        return "\n".join((python, *self.packages)) + "\n"


def pinned(package: str) -> str:
    """Return NAME==VERSION as this project's requirements pin it.

    Raises:
        KeyError: No requirements file pins it.
    """
    for file in ("requirements.txt", "requirements-deploy.txt", "requirements-dev.txt"):
        match = re.search(rf"^{re.escape(package)}==[^\s#]+", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[0]
    raise KeyError(f"{package}: no requirements file pins it")


def make_ready(environment: Environment, root: Path) -> Path:
    """Return the folder of `environment` below `root`, installed unless an earlier call has done so.

    Raises:
        NotRun: It cannot be installed; the installer's last lines are in install.log beside it.
    """
    folder = root / environment.name
    stamp = folder / "made-from.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == environment.stamp:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    install = _install_with_pip if environment.installer == "pip" else _install_with_npm
    install(environment, folder, root / f"{environment.name}.install.log")
    stamp.write_text(environment.stamp, encoding="utf-8")
    return folder


def interpreter(environment: Environment, folder: Path) -> str:
    """Return the program that runs a script in an environment that is ready."""
    return str(folder / "bin" / "python") if environment.installer == "pip" else _required("node")


def browser() -> str:
    """Return the path of a Chromium.

    Raises:
        NotRun: There is none.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise NotRun("no Chromium on this machine (Debian's package is called chromium)")
    return path


def _install_with_pip(environment: Environment, folder: Path, log: Path) -> None:
    _install([sys.executable, "-m", "venv", str(folder)], log)
    pip = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text(
        pinned("torch") + "\n", encoding="utf-8"
    )  # one build for all, so that numbers differ by the clients alone
    rest = [package for package in environment.packages if package != pinned("torch")]
    if len(rest) < len(environment.packages):
        try:  # like launch.sh, takes the CPU build if there is one; the general build has gigabytes for GPUs
            _install([*pip, pinned("torch") + "+cpu"], log)
        except NotRun:
            _install([*pip, pinned("torch")], log)
    if rest:
        _install([*pip, "--constraint", str(constraints), *rest], log)


def _install_with_npm(environment: Environment, folder: Path, log: Path) -> None:
    # onnxruntime-node's install script would fetch GPU libraries from elsewhere; its CPU library is in the package.
    variables = os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"}
    command = [_required("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(folder), *environment.packages]
    _required("node")
    _install(command, log, variables)


def _install(command: list[str], log: Path, variables: dict[str, str] | None = None) -> None:
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
                timeout=INSTALL_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise NotRun(f"its installation took longer than {INSTALL_SECONDS} s ({log})") from None
    if done.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise NotRun(f"cannot be installed: {(errors or lines or ['no word why'])[-1]} ({log})")


def _required(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise NotRun(f"no {program} on this machine")
    return path
