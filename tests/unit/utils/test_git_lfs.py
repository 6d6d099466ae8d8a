"""Test the pointers that version control leaves in place of files."""

import pytest

from ds_distill.utils.errors import UserError
from ds_distill.utils.git_lfs import check_not_lfs_pointer

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 6530184\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (LFS, r"6,530,184 bytes.*git lfs pull"),
        (LFS.replace("\n", "\r\n"), "git lfs pull"),
        ("\ufeff" + LFS, "git lfs pull"),
        (LFS.replace("git-lfs", "hawser"), "git lfs pull"),
        (LFS.replace("oid", f"ext-0-foo sha256:{OID}\noid"), "git lfs pull"),
        ("/annex/objects/SHA256E-s12--abc.txt\n", "git annex get data.bin"),
    ],
)
def test_a_pointer_is_told_from_the_file(tmp_path, text, message):
    (tmp_path / "data.bin").write_text(text, newline="")
    with pytest.raises(UserError, match=rf"data\.bin: a [Gg]it.*{message}"):
        check_not_lfs_pointer(tmp_path / "data.bin")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version",
        LFS + "x" * 1000,
        f"A pointer looks like this:\n{LFS}",
        "version https://git-lfs.github.com/spec/v1 is the specification\n",
        "/annex/objects/ is where git-annex keeps its files.\n",
    ],
)
def test_what_only_speaks_of_pointers_is_none(tmp_path, text):
    (tmp_path / "data.txt").write_text(text)
    check_not_lfs_pointer(tmp_path / "data.txt")
    check_not_lfs_pointer(str(tmp_path / "nowhere.txt"))
    check_not_lfs_pointer(tmp_path)
