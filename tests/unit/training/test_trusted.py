"""A checkpoint that somebody else may have written is refused before anything in it is unpickled."""

import os
import pickle
from pathlib import Path

import pytest

from ds_distill.training import trusted
from ds_distill.training.trusted import check_trusted, close_to_others
from ds_distill.training.weights import load_checkpoint_weights
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import tiny_bert
from tests.unit.test_hostile import Payload


def close_all(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        close_to_others(path)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoints" / "step-000000007"
    folder.mkdir(parents=True)
    (folder / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    (folder / "manifest.json").write_text("{}")
    close_all(folder)
    return folder


def test_what_this_user_wrote_under_any_umask_is_trusted(checkpoint):
    for umask in (0o002, 0o000):
        before = os.umask(umask)
        try:
            (checkpoint / f"file-{umask}").write_text("x")
        finally:
            os.umask(before)
    close_all(checkpoint)
    check_trusted(checkpoint)


@pytest.mark.promise("A checkpoint that another user may have written is refused before anything in it is unpickled")
@pytest.mark.parametrize("part", ["", "mp_rank_00_model_states.pt", "manifest.json"])
@pytest.mark.parametrize("case", ["another user's", "others may write", "a shared group may write"])
def test_what_others_may_have_written_is_not_unpickled(checkpoint, monkeypatch, part, case):
    path = checkpoint / part
    mode = path.stat().st_mode & 0o777
    monkeypatch.setattr(trusted, "_is_private", lambda group: case == "others may write")
    if case == "another user's":
        real = Path.stat

        def stat(self, **options):
            facts = real(self, **options)
            return os.stat_result((*facts[:4], 4_000_000, *facts[5:])) if self == path else facts

        monkeypatch.setattr(Path, "stat", stat)
        words = "belongs to 4000000, .*`chown -R .*step-000000007` first"
    else:
        path.chmod(mode | (0o002 if case == "others may write" else 0o020))
        words = "other users may write it, .*`chmod -R go-w .*step-000000007` first"
    with pytest.raises(UserError, match=words):
        load_checkpoint_weights(checkpoint, tiny_bert())
    assert not (checkpoint.parents[1] / "mark").exists()


def test_a_group_of_the_users_own_name_is_private(checkpoint, monkeypatch):
    (checkpoint / "manifest.json").chmod(0o664)
    monkeypatch.setattr(trusted.grp, "getgrgid", lambda number: Group(trusted._user(os.geteuid()), []))
    check_trusted(checkpoint)
    monkeypatch.setattr(trusted.grp, "getgrgid", lambda number: Group("physics", []))
    with pytest.raises(UserError, match="other users may write"):
        check_trusted(checkpoint)


class Group:
    def __init__(self, name: str, members: list[str]):
        self.gr_name, self.gr_mem = name, members
