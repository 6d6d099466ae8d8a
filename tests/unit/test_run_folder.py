import pytest

from ds_distill.run_folder import locked_run_folder_alone
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
