"""What a run shows while it trains: a progress bar, and the figures for its trackers on rank 0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

import torch

from ds_distill.recipe import Recipe
from ds_distill.reporting.heldout import FEW_GUESSES, describe_heldout, has_guesses
from ds_distill.reporting.run_text import millions
from ds_distill.run_folder import RunFolder
from ds_distill.tracking.trackers import Trackers
from ds_distill.training.checkpoint_writer import Saved
from ds_distill.training.state import StepResult, TrainState
from ds_distill.training.throughput import Throughput
from ds_distill.utils.console import duration, log, log_event, progress
from ds_distill.utils.memory import peak_memory

LEAST_STEPS, LEAST_SECONDS = 3, 10.0  # that an estimate of the remaining time is based on


class Metrics:
    """The display of a run, from its `__enter__` to its `__exit__`."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        state: TrainState,
        total_steps: int,
        title: str,
        device: torch.device,
    ):
        """Prepare the display of a run that begins or resumes at `state`.

        Args:
            recipe: The recipe, which names the trackers and is shown by them.
            folder: The run's folder.
            state: The run's progress, which the trainer keeps up to date.
            total_steps: The steps of the whole run.
            title: The label of the progress bar.
            device: The device of the run.
        """
        self.device, self._state = device, state
        self.throughput = Throughput()
        report_to = recipe.training.report_to if torch.distributed.get_rank() == 0 else []
        self._trackers = Trackers(report_to, folder, state.step, recipe.as_dict())
        self._warned: set[str] = set()  # the held-out sets that were said to be small
        self._bar = progress(total_steps, title, "step", initial=state.step)
        self._began = time.perf_counter()
        self._seconds, self._logging = 0.0, 0.0
        self._tokens = state.tokens
        self._title, self._total_steps = title, total_steps
        self._estimated = False
        self._after_first: tuple[int, float] | None = None  # (step, time) at the end of the first step

    def __enter__(self) -> Metrics:
        self._began = time.perf_counter()
        self.throughput = Throughput()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.close()
        self._trackers.close(finished=kind is None and self._state.step == self._total_steps)

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Show beside the bar's label what happens between two steps."""
        self._bar.set_description_str(f"{self._title}, {activity}")
        try:
            with self.throughput.paused():
                yield
        finally:
            self._bar.set_description_str(self._title, refresh=False)

    def log(self, state: TrainState, result: StepResult, learning_rate: float, compiling: float) -> None:
        """Show a step that `state` counts already; compiling has taken so many seconds since the process began."""
        began = time.perf_counter()
        self._seconds = began - self._began
        self.throughput.add(state.tokens - self._tokens, result.data_wait, compiling)
        self._tokens, rate = state.tokens, self.throughput.tokens_per_second
        losses = {name: value for name, value in result.losses.items() if value is not None}
        self._trackers.log(
            {
                "loss/total": result.loss,
                **{f"loss/{name}": value for name, value in losses.items()},
                "train/lr": learning_rate,
                **({"train/stage": state.stages[-1]["stage"]} if state.stages else {}),
                "train/grad_norm": result.grad_norm,
                "train/tokens_per_second": rate,
                "train/data_wait_share": self.throughput.data_wait_share,
                "train/tokens": state.tokens,
                "train/skipped_steps": state.skipped,
                "train/peak_memory_gib": peak_memory(self.device) / 2**30,
            },
            state.step,
        )
        terms = (f"{name} {value:.3f}" for name, value in losses.items())
        self._bar.show(
            f"loss {result.loss:.3f}",
            f"{rate:,.0f} tok/s",
            details=(*terms, f"lr {learning_rate:.2e}", f"{millions(state.tokens)} tokens"),
        )
        self._bar.update(1)
        self._estimate_time(state.step, began)
        self._logging += time.perf_counter() - began

    def log_evaluation(self, name: str, figures: Mapping[str, float | None], step: int) -> None:
        """Show the figures of the held-out set `name`, which is empty for the corpus's own.

        Trackers get those at [MASK] and at all selected positions, or a bare encoder's terms; counts never change.
        """
        log_event(f"step {step:,}: held-out {f'({name}) ' if name else ''}{describe_heldout(figures)}")
        count = figures.get("mask_count")  # a bare encoder makes no guesses
        if count is not None and count < FEW_GUESSES and name not in self._warned:
            self._warned.add(name)
            where = f" in {name}" if name else ""
            log(f"warning: {count} predictions at [MASK]{where} say little; add held-out text with --heldout")
        rarely = ("kept_", "random_") if has_guesses(figures) else ()
        shown = {
            key: value
            for key, value in figures.items()
            if not key.startswith(rarely) and key != "count" and not key.endswith("_count")
        }
        self._trackers.log({f"heldout{'_' if name else ''}{name}/{key}": value for key, value in shown.items()}, step)

    def log_ranks(self, figures: Mapping[str, float], step: int) -> None:
        """Show how long the ranks take for their own part of a step, in seconds, and which of them takes longest."""
        self._trackers.log({f"ranks/{name}": value for name, value in figures.items()}, step)

    def log_checkpoint(self, saved: Saved, stopped: float, step: int) -> None:
        """Show a checkpoint that was published, for which the training stopped some seconds."""
        log_event(
            f"step {saved.step:,}: checkpoint saved, {saved.bytes / 1e6:,.0f} MB in {saved.seconds:.1f} s, "
            f"of which the training waited {stopped:.2f} s"
        )
        figures = {"seconds": saved.seconds, "stop_seconds": stopped, "gib": saved.bytes / 2**30}
        self._trackers.log({f"checkpoint/{name}": value for name, value in figures.items()}, step)

    def _estimate_time(self, step: int, now: float) -> None:
        """Log once what the rest will take, without the first step, which compiles and fills caches."""
        if self._after_first is None:
            self._after_first = step, now
        first, began = self._after_first
        if self._estimated or step - first < LEAST_STEPS or now - began < LEAST_SECONDS:
            return
        self._estimated = True
        seconds = (self._total_steps - step) * (now - began) / (step - first)
        if seconds > LEAST_SECONDS:
            until = f"{datetime.now() + timedelta(seconds=seconds):%a %H:%M}"
            log_event(f"step {step:,}: ETA {until}, in {duration(seconds)}, evaluations and checkpoints aside")

    def flush(self) -> None:
        """Write out what has been shown: steps that a checkpoint counts as logged must survive a kill."""
        self._trackers.flush()

    def summary(self) -> dict[str, float | None]:
        """Return the run's mean rates, and the shares of its time that waiting for data and logging took.

        They are over all of this process's steps; what is shown along the way is of the last steps.
        """
        logging = {"logging_share": self._logging / self._seconds} if self._seconds else {}
        means: dict[str, float | None] = {"tokens_per_second": None, **self.throughput.means()}
        return means | {"peak_memory_gib": peak_memory(self.device) / 2**30} | logging
