"""Test that a rank with another checkout or library is named, with its host and both versions."""

import pytest

from ds_distill.distributed.code_version import PACKAGES, check_same_code, describe_code, hash_source
from ds_distill.utils.errors import UserError


@pytest.mark.promise("A host with other code or libraries than the first rank's is named, and the job does not start")
@pytest.mark.parametrize("name", ["ds-distill", "python", *PACKAGES])
def test_the_rank_that_differs_is_named(name):
    here = describe_code() | {"host": "node-0"}
    assert here[name]
    alike = here | {"host": "node-1"}
    check_same_code([here, alike, alike])
    with pytest.raises(UserError, match=rf"rank 2 \(host node-1\) has {name} 0.1, but rank 0 \(host node-0\) has "):
        check_same_code([here, alike, alike | {name: "0.1"}])
    with pytest.raises(UserError, match=rf"has {name} not installed"):
        check_same_code([here, {key: value for key, value in alike.items() if key != name}])


def test_every_edit_of_the_source_counts(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "part" / "b.py").write_text("")
    hashes = [hash_source(tmp_path)]
    (tmp_path / "a.py").write_text("x = 2\n")
    hashes.append(hash_source(tmp_path))
    (tmp_path / "part" / "b.py").rename(tmp_path / "part" / "c.py")
    hashes.append(hash_source(tmp_path))
    assert len(set(hashes)) == 3 and hash_source(tmp_path) == hashes[-1] == hash_source(tmp_path)
    (tmp_path / "part" / "__pycache__").mkdir()
    (tmp_path / "part" / "__pycache__" / "c.pyc").write_bytes(b"compiled")
    assert hash_source(tmp_path) == hashes[-1]
    assert hash_source() == hash_source() != hash_source(tmp_path)
