"""Terminal output: tables and progress bars, drawn by rich."""

import atexit
import io
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

# Seconds between the progress lines of a job whose output goes to a file or a pipe.
REPORT_EVERY = 10.0


def terminal_width() -> int | None:
    """Return the width of the terminal behind stdout in characters; None for a file or a pipe."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    width: int | None = None,
    indent: int = 0,
) -> str:
    """Return a table as text, with columns of numbers aligned right and the others left.

    width: maximum width in characters; None: each row is one line, however long. If the table is
    too wide, the first column is folded, so that no character of a path is lost. indent: number of
    spaces before each line.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column, name in enumerate(header):
        numbers = all(_is_number(row[column]) for row in cells)
        grid.add_column(
            Text(str(name)),
            justify="right" if numbers and cells else "left",
            no_wrap=column > 0,
            overflow="fold" if column == 0 else "ellipsis",
        )
    for row in cells:
        grid.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=width or 100_000, color_system=None).print(grid)
    return "\n".join((" " * indent + line).rstrip() for line in text.getvalue().splitlines())


def time_span(seconds: float) -> str:
    """Format a time span, such as `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _is_number(text: str) -> bool:
    try:
        float(text.strip(" %+*") or "0")
    except ValueError:
        return False
    return True


class Progress:
    """The progress of a job on stderr: a bar on a terminal, otherwise a line every ten seconds.

        with Progress(len(paths), "images") as show:
            show(32)

    before: the amount already done at the start, which does not count towards the speed.
    """

    def __init__(self, total: int, unit: str = "images", *, before: int = 0) -> None:
        self.total, self.unit, self.before = total, unit, before
        self.started = self.shown = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, done: int) -> None:
        """Show that `done` units are complete; the bar ends when the total is reached."""
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = self._start()
            self.bar.update(self.bar.task_ids[0], completed=done)
            if done >= self.total:
                self.close()
            return
        now = time.monotonic()
        if now - self.shown > REPORT_EVERY:
            self.shown = now
            rate = (done - self.before) / max(now - self.started, 1e-9)
            left = f", {time_span((self.total - done) / rate)} left" if rate > 0 else ""
            if self.unit == "bytes":
                line = f"{done / 1e6:.1f} of {self.total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
            else:
                line = f"{done} of {self.total} {self.unit}, {rate:.1f}/s"
            print(line + left, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop the bar where it is, so that the next line appears below it."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _start(self) -> "Bar":
        from rich import progress as rich
        from rich.console import Console

        columns = (
            [rich.DownloadColumn(), rich.TransferSpeedColumn()]
            if self.unit == "bytes"
            else [rich.MofNCompleteColumn(), rich.TextColumn("{task.fields[unit]}")]
        )
        bar = rich.Progress(
            rich.BarColumn(),
            *columns,
            rich.TimeRemainingColumn(compact=True),
            rich.TimeElapsedColumn(),
            console=Console(file=sys.stderr),
        )
        bar.add_task("", total=self.total, completed=self.before, unit=self.unit)
        bar.start()
        atexit.register(bar.stop)  # otherwise the cursor would stay hidden
        return bar
