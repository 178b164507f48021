"""Where numbers go: a line or a bar on the terminal, metrics.jsonl, TensorBoard, and Weights & Biases if asked."""
import json
import math
import secrets
import sys

from etils import epath

from simclr_jax.errors import UsageError


class Log:
    """Process 0's log of a run; on other processes every method does nothing.

    Args:
      workdir: where metrics.jsonl and tb/ lie; total: steps of the run; start: the step it goes on from. Rows of later
        steps, from a run that died after its last checkpoint, are taken out: they will be written again.
      config: for W&B, which is used if it has `wandb` set.
    """

    def __init__(self, workdir, *, total: int, start: int, config: dict, active: bool = True):
        self.active, self.total = active, total
        self._bar = self._tb = self._wandb = self._file = None
        if not active:
            return
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._rows = [row for row in read_rows(self._path) if row["step"] <= start]
        self._write()
        self._tb = _tensorboard(epath.Path(workdir) / "tb", start, self.say)
        if config.get("wandb"):
            self._wandb = _wandb(workdir, config)
        if sys.stdout.isatty():
            self._bar = _bar(total, start)

    def has(self, step: int, prefix: str) -> bool:
        """Whether a row of `step` holds a name that starts with `prefix`; only process 0 knows."""
        return self.active and any(r["step"] == step and any(k.startswith(prefix) for k in r) for r in self._rows)

    def say(self, text: str) -> None:
        """One line for the reader, above the bar if there is one."""
        if self.active and self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.active:
            print(text, flush=True)

    def tick(self, step: int) -> None:
        """Moves the bar, if there is one."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """A row for a step: {"step": step, "train/loss": ..., ...}."""
        if not self.active:
            return
        self._rows.append({"step": step, **{k: v if math.isfinite(v) else None for k, v in numbers.items()}})
        self._write()
        for name, value in numbers.items():
            if self._tb:
                self._tb.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def skipped(self, step: int, numbers: dict[str, float], ids: list) -> None:
        """A row of skipped.jsonl: a step that was not taken, its numbers as text where not finite, and its examples."""
        if self.active:
            path = self._path.with_name("skipped.jsonl")
            earlier = "".join(json.dumps(r) + "\n" for r in read_rows(path) if r["step"] < step)
            row = {"step": step, **{k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}, "ids": ids}
            path.write_text(earlier + json.dumps(row) + "\n")

    def progress(self, step: int, text: str) -> None:
        """The state of the run: on the bar of a terminal, a line elsewhere."""
        if not self.active:
            return
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            print(f"step {step:>{len(str(self.total))}}/{self.total}  {text}", flush=True)

    def close(self) -> None:
        # An unclosed writer raises "can't create new thread at interpreter shutdown" on Python 3.12.
        for resource, end in ((self._bar, "stop"), (self._tb, "close"), (self._wandb, "finish"), (self._file, "close")):
            if resource:
                getattr(resource, end)()

    def _write(self):
        if str(self._path).startswith("gs://"):  # object stores have no append: the whole file, at every row
            self._path.write_text("".join(json.dumps(r) + "\n" for r in self._rows))
            return
        if self._file is None:
            temporary = self._path.with_name("metrics.jsonl.tmp")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in self._rows))
            temporary.replace(self._path)
            self._file = open(self._path, "a", buffering=1)
        elif self._rows:
            self._file.write(json.dumps(self._rows[-1]) + "\n")


def read_rows(path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was cut off by a crash is passed over."""
    path = epath.Path(path)
    rows = []
    for line in (path.read_text().splitlines() if path.exists() else ()):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def check(config) -> None:
    """Refuses a log that cannot be kept, on every process alike."""
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise UsageError("config.wandb=true, but wandb is not installed: pip install wandb, or set it to false"
                             ) from None


def _tensorboard(directory, start, say):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        say("no TensorBoard log: tensorboardX is not installed (pip install tensorboardX)")
        return None
    return SummaryWriter(str(directory), purge_step=start + 1 if start else None)


def _wandb(workdir, config):
    import wandb
    known = epath.Path(workdir) / "wandb_id"  # a resumed run goes on in the same place
    if not known.exists():
        known.write_text(secrets.token_hex(8))
    return wandb.init(dir=str(workdir), config=config, name=epath.Path(workdir).name, id=known.read_text(), resume="allow")


def _bar(total, start):
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        return None
    bar = Progress(BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar.add_task("compiling", total=total, completed=start)
    bar.start()
    return bar
