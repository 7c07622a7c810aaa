"""The curves of a run, for TensorBoard and as a table."""

import csv
import time
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer import event_file_writer


def write_whole(path: Path, content: bytes):
    """Writes a file at once, as others see it, whatever ends the process."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(path)


class Log:
    """Writes TensorBoard's file, and `metrics.csv` with a row for each epoch, in a folder.

    Args:
      flags: of the run, shown as hyperparameters.
      epoch, steps: where the run goes on; what was logged later is going to be logged again.
    """

    def __init__(self, folder: Path, flags: dict, epoch: int, steps: int):
        if not epoch:
            for earlier in (*folder.glob("events.out.tfevents.*"), *folder.glob("metrics.csv")):
                earlier.unlink()  # of a run that had not come to a checkpoint
        # By its full name, which is where wandb replaces it.
        self._writer = event_file_writer.EventFileWriter(str(folder), flush_secs=1)
        self._csv, self._columns = folder / "metrics.csv", None
        if epoch:
            self._writer.add_event(Event(step=steps + 1, session_log=SessionLog(status=SessionLog.START)))
            header, *rows = self._csv.read_text().splitlines(keepends=True)
            self._columns = header.strip().split(",")  # whatever a script that has changed logs now
            write_whole(self._csv, (header + "".join(r for r in rows if int(r.split(",")[0]) <= epoch)).encode())
        rows = "\n".join(f"| {name} | {value} |" for name, value in flags.items())
        values = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flags.items()}
        self._add(hparams_pb(values, trial_id=folder.resolve().name))
        self._add(text_pb("hyperparameters", f"| flag | value |\n| --- | --- |\n{rows}"))

    def _add(self, summary: Summary, steps: int = 0):
        self._writer.add_event(Event(wall_time=time.time(), step=steps, summary=summary))

    def add(self, epoch: int, steps: int, seconds: float, metrics: dict[str, float]):
        """An epoch's metrics, at so many environment steps and seconds since the start of the run."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(Summary(value=scalars), steps)
        row = {"epoch": epoch, "steps": steps, "seconds": f"{seconds:.1f}"}
        row |= {name: f"{value:.6g}" for name, value in metrics.items()}
        with self._csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns or row.keys(), extrasaction="ignore", lineterminator="\n")
            if not file.tell():  # it is new
                writer.writeheader()
            writer.writerow(row)

    def add_film(self, gif: Path, steps: int):
        """A film, which TensorBoard plays."""
        with Image.open(gif) as picture:
            width, height = picture.size
        image = Summary.Image(encoded_image_string=gif.read_bytes(), width=width, height=height, colorspace=3)
        self._add(Summary(value=[Summary.Value(tag="film", image=image)]), steps)

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()
