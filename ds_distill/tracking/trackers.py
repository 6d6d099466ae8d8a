"""All trackers of a run as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from ds_distill.run_folder import RunFolder
from ds_distill.tracking.choice import LIBRARIES
from ds_distill.tracking.processes import TrackerProcesses

if TYPE_CHECKING:
    from ds_distill.tracking.tensorboard import TensorBoard


class Trackers:
    """The trackers of a run. Only the job's first rank makes them."""

    def __init__(
        self, report_to: Sequence[str], folder: RunFolder, step: int, config: Mapping[str, Any], name: str | None = None
    ):
        """Begin to report a run, or continue the report of one that resumes.

        Args:
            report_to: The names of the trackers.
            folder: The run's folder.
            step: The steps that the run has done. A later step that was reported before a kill is not
                reported twice.
            config: The settings of the run.
            name: The name of the run; that of its folder by default.
        """
        libraries = [tracker for tracker in LIBRARIES if tracker in report_to]
        self._trackers: list[TensorBoard | TrackerProcesses] = []
        if "tensorboard" in report_to:
            from ds_distill.tracking.tensorboard import TensorBoard

            self._trackers.append(TensorBoard(folder.tensorboard, step))
        if libraries:
            name = name or folder.path.resolve().name
            self._trackers.append(TrackerProcesses(libraries, folder.trackers, name, config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(finished=kind is None)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Report the figures of a step. One that is None has not been measured."""
        for tracker in self._trackers:
            tracker.log(values, step)

    def flush(self) -> None:
        """Write out what has been reported, so that it survives a kill."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self, finished: bool) -> None:
        """End the report of a run that is finished, or that has stopped."""
        for tracker in self._trackers:
            tracker.close(finished)
