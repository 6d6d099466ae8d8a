"""The trackers that a run may report to, and whether their libraries are installed. Imports none of them."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Literal

from ds_distill.utils.errors import UserError

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
LIBRARIES = ("wandb", "trackio", "mlflow")  # each in a process of its own; TensorBoard only writes a file


def check_installed(report_to: Sequence[str], key: str) -> None:
    """Raise UserError for a tracker whose library is not installed."""
    for name in report_to:
        if name not in LIBRARIES:
            continue
        remedy = f"run pip install 'ds-distill[{name}]', or leave {name} out"
        if not _is_installed(name):
            raise UserError(f"{key} = {name}: the package {name} is not installed; {remedy}")
        if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI") and not _is_installed("sqlalchemy"):
            raise UserError(
                f"{key} = mlflow: mlflow-skinny reports to a server only; set MLFLOW_TRACKING_URI, or {remedy}"
            )


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder that wandb has left here is no library
