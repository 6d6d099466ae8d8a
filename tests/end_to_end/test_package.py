"""A wheel brings everything that the commands need, wherever they start."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from transformers import pipeline

from tests import patience
from tests.start import ROOT, environment_of


def run(words: list, folder: Path) -> subprocess.CompletedProcess:
    environment = environment_of(PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    del environment["PYTHONPATH"]  # what is installed counts, not the checkout
    done = patience.run(words, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A new environment with the project's wheel, in which the other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "venv"
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("ds_distill", "ds_configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=no_caches)
    for name in ("pyproject.toml", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(ROOT / name, source)
    wheels = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    run([sys.executable, "-m", "pip", *wheels], folder)
    shutil.rmtree(source)
    venv.create(environment, symlinks=True)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "pip", "--python", environment, "install", "--no-deps", wheel], folder)
    packages = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return packages


def files_below(package: Path) -> set[str]:
    """Return the files of a package, also those behind links, without compiled modules."""
    return {
        os.path.relpath(os.path.join(folder, name), package)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }


def test_the_wheel_has_every_file_of_the_package(installed):
    assert files_below(installed / "ds_distill") == files_below(ROOT / "ds_distill")
    assert (installed / "ds_distill" / "ds_configs" / "studies" / "retention.yaml").is_file()


def test_the_packages_of_this_environment_are_in_the_ranges_of_the_wheel(installed, tmp_path):
    """Pip finds nothing to install, and no index."""
    environment = installed.parents[2]
    run([sys.executable, "-m", "pip", "--python", environment, "install", "--dry-run", "ds-distill[deploy]"], tmp_path)


def test_the_installed_command_distills_by_the_name_of_a_recipe(installed, world, tmp_path):
    command = installed.parents[2] / "bin" / "ds-distill"
    assert "distill" in run([command, "--help"], tmp_path).stdout
    shape = ["--data.sequence_length", 32, "--training.max_tokens", 512, "--training.optimizer", "torch"]
    words = ["--teacher", world / "teacher", "--corpus", world / "text.txt", "--output", "run", *shape]
    done = run([command, "distill", "--config", "few_tokens", *words], tmp_path)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert 400 < summary["tokens"] <= 512 and summary["export"] == "run/export"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["losses.cosine"] == 200
    assert len(pipeline("fill-mask", str(tmp_path / "run" / "export"))("the [MASK] model")) == 5
    code = "import ds_distill; print(ds_distill.__file__, ds_distill.Recipe.load('few_tokens').losses.cosine)"
    assert run([command.with_name("python"), "-c", code], tmp_path).stdout.split() == [
        str(installed / "ds_distill" / "__init__.py"),
        "200.0",
    ]
