import contextlib

import pytest

from ds_distill.run_folder import _bind, check_run_identity, locked_run_folder_alone
from ds_distill.utils.errors import UserError


def claim(folder, **identity):
    with locked_run_folder_alone(
        folder, {"training.seed": 0, "training.precision": "auto", "training.optimizer": "auto"} | identity
    ):
        pass


def test_another_run_is_refused_and_what_auto_became_is_not(tmp_path):
    claim(tmp_path)
    claim(tmp_path, **{"training.precision": "bf16"})  # the refusal of a checkpoint asks for this
    claim(tmp_path, **{"training.optimizer": "torch"})
    with pytest.raises(UserError, match=r"holds another run \(training.seed was 0, is 1\)"):
        claim(tmp_path, **{"training.seed": 1, "training.precision": "bf16"})
    claim(tmp_path / "b", **{"training.precision": "fp32"})
    with pytest.raises(UserError, match="training.precision was fp32, is bf16"):
        claim(tmp_path / "b", **{"training.precision": "bf16"})


def test_a_mistake_that_is_found_before_anything_is_made_leaves_no_claim(tmp_path):
    with pytest.raises(UserError, match="sorted"), locked_run_folder_alone(tmp_path, {"data": "sorted"}):
        raise UserError("sorted by label")
    claim(tmp_path)
    with pytest.raises(UserError, match="another mistake"), locked_run_folder_alone(tmp_path, {"training.seed": 0}):
        raise UserError("another mistake, in the run that has this folder")
    with pytest.raises(UserError, match="holds another run"):
        claim(tmp_path, **{"training.seed": 1})
    for error in (OSError("the disk is full"), UserError("the loss is not finite")):
        folder = tmp_path / type(error).__name__
        with pytest.raises(type(error)), locked_run_folder_alone(folder, {"data": "sorted"}):
            (folder / "tensorboard").mkdir()
            raise error
        with pytest.raises(UserError, match="holds another run"):
            claim(folder)


def test_a_run_may_grow_where_that_is_allowed(tmp_path, capsys):
    def grow(can_grow=True, **identity):
        with contextlib.ExitStack() as lock:
            _bind(tmp_path, {"seed": 0, "training.epochs": 3} | identity, lock, "auto", "another", None, can_grow)

    grow(**{"training.max_tokens": 100})
    grow(**{"training.max_tokens": 200})
    assert "training.max_tokens was 100, is 200" in capsys.readouterr().err
    for refused in (
        {"training.max_tokens": 100},  # it has read more already
        {"training.max_tokens": 0},  # the length is that of the epochs now
        {"training.max_tokens": 300, "seed": 1},
    ):
        with pytest.raises(UserError, match="holds another run"):
            grow(**refused)
    with pytest.raises(UserError, match="training.max_tokens was 200, is 300"):
        grow(False, **{"training.max_tokens": 300})
    grow(**{"training.max_tokens": 200})


def test_a_folder_with_a_model_is_no_place_for_a_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a model, not a run: choose another --output"):
        check_run_identity(tmp_path, {"a": 1}, "auto")
    (tmp_path / "run.json").write_text('{"a": 1}')
    check_run_identity(tmp_path, {"a": 1}, "auto")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"run"'])
def test_a_damaged_identity_is_answered(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with (
        pytest.raises(UserError, match="run.json is damaged .*choose another --output"),
        locked_run_folder_alone(tmp_path, {}),
    ):
        pass
