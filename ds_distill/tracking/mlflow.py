"""MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

DATABASE = "mlflow.db"
METRICS, PARAMS = 1000, 100  # the most that one request may have


class Run:
    """A run of MLflow: on the server that the user has set, else in a database in the run's folder."""

    def __init__(self, name: str, config: dict[str, Any], id: str | None, folder: Path, say: Callable[[str], None]):
        """Begin a run, or continue the one that has this id."""
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.chdir(folder)  # a path in a URI cannot have every character that a folder's name can
            if not id:
                Path(DATABASE).unlink(missing_ok=True)  # a kill may have left a part of its tables
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{DATABASE}"
        self._client = MlflowClient()
        try:
            self.id = self._client.get_run(id).info.run_id if id else self._create(name, config)
        except MlflowException as error:
            if not id or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.id = self._create(name, config)
        self._client.update_run(self.id, "RUNNING")

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Report the figures of some steps."""
        metrics = [
            Metric(re.sub(r"[^\w\-./: ]", "_", key, flags=re.ASCII), value, int(row["time"] * 1000), row["step"])
            for row in rows
            for key, value in row["values"].items()
        ]
        for start in range(0, len(metrics), METRICS):
            self._client.log_batch(self.id, metrics[start : start + METRICS])

    def finish(self, finished: bool) -> None:
        """End the run."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")

    def _create(self, name: str, config: dict[str, Any]) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ds-distill")
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in _flat(config)]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(run_id, params=params[start : start + PARAMS])
        return run_id


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings by their dotted names."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
