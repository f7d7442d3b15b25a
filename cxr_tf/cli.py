"""Run a command line: parse its flags, call its job, and turn errors into an exit code."""

import contextlib
import dataclasses
import gc
import io
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cxr_tf import legacy
from cxr_tf.errors import UserError
from cxr_tf.files import disk_errno, expand_user, naming_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

# Names the stream in errors, as a path names a file.
STANDARD_OUTPUT = Path("standard output")


def run(
    settings_type: type[Settings], job: Callable[[Settings], Any], *, load_tensorflow: bool = True
) -> None:
    """Parse the command line into `settings_type`, call `job` with it, and exit.

    load_tensorflow: whether to import TensorFlow first, with its start-up messages hidden.

    The exit code is 0 if the job is done, 2 for a mistake that the user can fix (with one line on
    stderr), and 130 for an interrupted job.
    """
    _install_signal_handlers()
    try:
        settings = _with_home(_parse(settings_type))
        if isinstance(sys.stdout, io.TextIOWrapper):  # for names that the terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
        logging.basicConfig(
            handlers=[_StrictHandler(sys.stdout)],
            level=logging.WARNING,
            format="%(message)s",
            force=True,
        )
        for package in ("cxr_tf", "benchmarks"):  # benchmarks are next to the package, not in it
            logging.getLogger(package).setLevel(logging.INFO)
        _set_environment()
        if load_tensorflow:
            with _without_start_up_noise():
                import tensorflow  # noqa: F401
        # The million objects of the imported modules live as long as the process: without this,
        # each garbage collection would traverse them.
        gc.freeze()
        job(settings)
        _flush()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _set_handlers(signal.SIG_IGN)
        _fail(
            "interrupted; to continue, run the same command again (for training, with --resume)",
            130,
        )
    except BrokenPipeError:
        _fail("", 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            # No space, no permission: errno tells the user what to fix.
            of_file = f": {error.filename}" if error.filename else ""
            _fail(f"{error.strerror}{of_file}", 2)
        if disk_errno(error) is not None:  # raised by TensorFlow or HDF5
            _fail(str(error).splitlines()[0], 2)
        raise


# A second signal within this time is part of the same key press or shutdown.
BURST = 1.0  # seconds


def _install_signal_handlers() -> None:
    """Let Ctrl-C, SIGTERM (schedulers) and SIGHUP (a closed terminal) raise KeyboardInterrupt.

    Signals that follow within a second do not interrupt the clean-up. Signals that the parent
    process ignored stay ignored, as under nohup.
    """
    last = float("-inf")

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last
        if time.monotonic() - last > BURST:
            last = time.monotonic()
            raise KeyboardInterrupt

    _set_handlers(interrupt)


def _set_handlers(handler: Any) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _parse(settings_type: type[Settings]) -> Settings:
    import tyro

    arguments, notes = legacy.present_arguments(
        sys.argv[1:], [field.name for field in dataclasses.fields(settings_type)]
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        return tyro.cli(settings_type, args=arguments)
    except BrokenPipeError:
        # `--help | head` closed the pipe; flushing the buffer at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _with_home(settings: Any) -> Any:
    """Expand `~` in the output folders, because a shell does not expand it in `--logs=~/runs`."""
    given = {k: getattr(settings, k, None) for k in ("logs", "saved_models")}
    return dataclasses.replace(
        settings,
        **{k: str(expand_user(v)) for k, v in given.items() if isinstance(v, str) and v[:1] == "~"},
    )


class _StrictHandler(logging.StreamHandler):
    """A log handler that stops the job if a line cannot be written, as `print` would."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise errors of the stream, and report errors of formatting as usual."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            with naming_file(STANDARD_OUTPUT):
                raise error
        super().handleError(record)


def _flush() -> None:
    if sys.stdout is not None:  # None if the parent process closed it
        with naming_file(STANDARD_OUTPUT):
            sys.stdout.flush()


def _fail(message: str, code: int) -> None:
    try:
        _flush()
    except OSError:  # flushing at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        with contextlib.suppress(OSError):  # the terminal has been closed
            print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _set_environment() -> None:
    # Labels in a script that the font lacks are drawn as boxes, without a warning for each.
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
    # TensorFlow logs a damaged fingerprint.pb, which it does not need, with a stack trace.
    logging.getLogger("absl").addFilter(_without_stack_trace)
    # TensorFlow reads these once, on import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # This allocator keeps freed memory. Otherwise the memory of large gradients is returned to the
    # system and faulted in again, page by page, in each step: a third of AlexNet's step time.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")


def _without_stack_trace(record: logging.LogRecord) -> bool:
    if record.getMessage().startswith("Fingerprint was found"):
        record.exc_info = None
    return True


@contextlib.contextmanager
def _without_start_up_noise() -> Iterator[None]:
    """Hide what TensorFlow's libraries print to file descriptor 2 while they load.

    They do so before any log level applies. If loading fails, the hidden output is shown.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(saved, 2)
            hidden.seek(0)
            sys.stderr.write(hidden.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
