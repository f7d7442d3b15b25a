"""From a script's flags to one call, and from a user's mistake to one line and exit code 2."""

import contextlib
import dataclasses
import gc
import io
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from cxr_tf import legacy
from cxr_tf.errors import UserError
from cxr_tf.files import expand_user

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def run(
    settings_type: type[Settings], job: Callable[[Settings], Any], *, load_tensorflow: bool = True
) -> None:
    """Parses the command line into `settings_type`, calls `job` with it, and exits.

    load_tensorflow: whether to import it first, without its start-up messages.

    Exit codes: 0 done, 2 a mistake the user can mend (one line on stderr), 130 interrupted.
    """
    settings = _with_home(_parse(settings_type))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        handlers=[_Lines(sys.stdout)], level=logging.WARNING, format="%(message)s", force=True
    )
    logging.getLogger("cxr_tf").setLevel(logging.INFO)
    _settle_environment()
    # Containers and schedulers stop a process so: it cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if load_tensorflow:
            with _without_start_up_noise():
                import tensorflow  # noqa: F401
        # The million objects of what was imported live as long as the process: each collection of
        # garbage would go through them in vain.
        gc.freeze()
        job(settings)
        _flush()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail(
            "interrupted; a training goes on with --resume, studies, archives and downloads by "
            "themselves",
            130,
        )
    except BrokenPipeError:
        _fail("", 1)
    except OSError as error:
        # No space, no permission: the user's to mend, and errno says which.
        if error.errno is None:
            raise
        _fail(f"{error.strerror}: {error.filename or 'while writing'}", 2)


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
        # `--help | head` has read enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _with_home(settings: Any) -> Any:
    """The settings with `~` in full where results go: a shell leaves it in `--logs=~/runs`."""
    given = {k: getattr(settings, k, None) for k in ("logs", "saved_models")}
    return dataclasses.replace(
        settings,
        **{k: str(expand_user(v)) for k, v in given.items() if isinstance(v, str) and v[:1] == "~"},
    )


class _Lines(logging.StreamHandler):
    """Lines of the log; one that cannot be written stops the job, as one of `print` would."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a line could not be put together, or written."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


def _flush() -> None:
    if sys.stdout is not None:  # closed by whoever started the process
        sys.stdout.flush()


def _fail(message: str, code: int) -> None:
    try:
        _flush()
    except OSError:  # nor must it be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _settle_environment() -> None:
    # Of a label in a script that the font lacks, figures show boxes; it need not be said each time.
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
    # TensorFlow reads these once, when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Keeps memory that was let go. Else the gradients of large layers are given back to the system
    # and fetched again, page by page, in each step: a third of a step of AlexNet.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")


@contextlib.contextmanager
def _without_start_up_noise() -> Iterator[None]:
    """Holds back what TensorFlow's libraries print to file descriptor 2 while they load.

    They do so before any log level applies. If loading fails, what was held back is shown.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
