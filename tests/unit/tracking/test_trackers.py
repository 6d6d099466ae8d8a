import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from ds_distill.run_folder import RunFolder
from ds_distill.tracking.choice import LIBRARIES, check_installed
from ds_distill.tracking.trackers import Trackers
from ds_distill.tracking.worker import Progress
from ds_distill.utils.errors import UserError
from tests.start import ROOT
from tests.tracked import each_library, figures

CONFIG = {"training": {"seed": 1, "betas": [0.9, 0.98], "deepspeed": None}}


def train(trackers: Trackers, steps: range) -> None:
    for step in steps:
        trackers.log({"loss/total": step / 4, "train/grad_norm": None}, step)
        if step % 5 == 0:
            trackers.log({"heldout_books, 2/mask_loss": float(step)}, step)
    trackers.flush()


@pytest.mark.parametrize("name", each_library())
def test_a_run_that_stops_resumes_and_continues_is_one_run_with_each_step_once(name, tmp_path, monkeypatch, capfd):
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "TRACKIO_", "WANDB_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # nobody is logged in there, and wandb must not ask
    for variable in ("NETRC", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    folder = RunFolder(tmp_path / "a run, with 100 % of it")
    stopped = Trackers([name], folder, 0, CONFIG)
    train(stopped, range(0, 8))
    stopped.close(finished=False)
    with Trackers([name], folder, 6, CONFIG) as trackers:
        train(trackers, range(7, 12))
    longer = {"training": CONFIG["training"] | {"max_tokens": 14}}
    with Trackers([name], folder, 11, longer) as trackers:
        train(trackers, range(12, 14))
    kept, output = figures(name, folder.trackers), capfd.readouterr().err
    assert len({id for id, *_ in kept}) == 1, output
    assert ("wandb: not logged in" in output) == (name == "wandb")
    heldout = "heldout_books_ 2/mask_loss" if name == "mlflow" else "heldout_books, 2/mask_loss"
    assert sorted(row[1:] for row in kept) == sorted(
        [("loss/total", step, step / 4) for step in range(14)] + [(heldout, step, float(step)) for step in (0, 5, 10)]
    )
    assert {file.name for file in tmp_path.iterdir()} <= {folder.path.name, "home"}


def test_tensorboard_hides_the_steps_after_the_checkpoint(tmp_path, monkeypatch):
    # Files of one second are read in the order of their names, which end in a number that the process counts: 10 is
    # before 9. The files of a resumed run are those of two processes, and of two seconds.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    folder = RunFolder(tmp_path)
    killed = Trackers(["tensorboard"], folder, 0, CONFIG)
    train(killed, range(0, 8))
    with Trackers(["tensorboard"], folder, 6, CONFIG) as trackers:
        train(trackers, range(7, 12))
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(i, i / 4) for i in range(12)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_run_continues_without_tensorboard_where_its_disk_is_full(tmp_path, capfd):
    folder = RunFolder(tmp_path / "run")
    trackers = Trackers(["tensorboard"], folder, 0, CONFIG)
    (events,) = folder.tensorboard.iterdir()
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "full").replace(events)  # at once, since the writer's thread makes a file that is missing anew
    train(trackers, range(100))
    trackers.close(finished=True)
    errors = capfd.readouterr().err
    assert errors.count("No space left on device; the run continues without tensorboard") == 1
    assert "Traceback" not in errors
    broken = RunFolder(tmp_path / "other")
    broken.path.mkdir()
    broken.tensorboard.write_text("")
    with Trackers(["tensorboard"], broken, 0, CONFIG) as trackers:
        train(trackers, range(3))
    assert "the run continues without tensorboard" in capfd.readouterr().err


def test_no_tracker_writes_nothing(tmp_path):
    with Trackers([], RunFolder(tmp_path), 0, CONFIG) as trackers:
        train(trackers, range(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_refused_even_where_its_files_lie(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()  # as wandb leaves one in the working folder
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError) as error:
        check_installed(["tensorboard", name], "training.report_to")
    assert str(error.value) == (
        f"training.report_to = {name}: the package {name} is not installed; run pip install 'ds-distill[{name}]', "
        f"or leave {name} out"
    )


BROKEN = """
import os
class Run:
    def log(self, values, step):
        print("a word of the library")
        if step == 2 and os.path.exists("broken"):
            raise ConnectionError("the server is gone")
        with open("taken", "a") as file:
            file.write(f"{step} ")
    def finish(self):
        pass
def init(*_, **__):
    return Run()
"""


def test_a_tracker_that_fails_ends_no_run_and_its_command_sends_the_rest(tmp_path, monkeypatch, capfd):
    (tmp_path / "trackio.py").write_text(BROKEN)
    (tmp_path / "broken").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Trackers(["trackio"], RunFolder(tmp_path / "a run"), 0, CONFIG) as trackers:
        train(trackers, range(4))
    output = capfd.readouterr()
    assert "trackio: the server is gone; the run continues without it" in output.err and output.out == ""
    assert "ConnectionError" in (tmp_path / "a run" / "trackers" / "trackio.log").read_text()
    (tmp_path / "broken").unlink()
    (tmp_path / "taken").unlink()
    command = output.err.partition("to send the rest, run ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (tmp_path / "taken").read_text().split()[-2:] == ["2", "3"]


def test_progress_takes_whole_lines_and_each_figure_once(tmp_path):
    rows, file = tmp_path / "rows.jsonl", tmp_path / "progress.json"

    def line(step: int, **values: float | None) -> str:
        return json.dumps({"step": step, "time": 0.0, "values": values}) + "\n"

    def read(progress: Progress) -> list:
        return [(row["step"], row["values"]) for row in progress.read(rows)]

    progress = Progress(file)
    progress.begin("first")
    cut = line(2, a=2.0)[:9]
    rows.write_text(line(0, a=0.0, b=None) + line(1, a=1.0) + cut)
    assert read(progress) == [(0, {"a": 0.0}), (1, {"a": 1.0})]
    progress.save()
    with rows.open("a") as more:  # killed and resumed from the start
        more.write("\n" + line(0, a=0.0) + line(1, a=1.0, c=3.0) + line(2, a=2.0))
    progress = Progress(file)
    progress.begin("first")
    assert read(progress) == [(1, {"c": 3.0}), (2, {"a": 2.0})]
    progress.begin("second")  # a run that the tracker has lost is reported anew
    assert [step for step, _ in read(progress)] == [0, 1, 1, 2]
