"""The command `titer`. The only place that prints.

In: a command line. Out: text, JSON, an exit code. It imports every room; only `python -m` and tests import it.

Exit codes: 0 done, 1 some cells failed, 2 the input is wrong, 130 stopped by Ctrl-C.
"""

import sys
from contextlib import suppress

try:
    from benchmark.cli import board, importing, look, new, run, store  # noqa: F401  # each registers its commands
    from benchmark.cli.common import CURE, app, err
    from benchmark.errors import InputError, TiterError
except KeyboardInterrupt:  # the first second goes by in these imports
    sys.stderr.write("stopped\n")
    raise SystemExit(130) from None

__all__ = ["app", "main"]


def main() -> None:
    """The entry point: our own errors become one line."""
    try:
        app()
    except InputError as error:
        err.print(f"{type(error).__name__}: {' '.join(str(error).split())}", markup=False)
        sys.exit(2)
    except TiterError as error:
        err.print(f"{type(error).__name__}: {error}", markup=False)
        sys.exit(1)
    except OSError as error:  # of a disk or a terminal that is gone, where no command expected it
        with suppress(OSError):
            err.print(f"{type(error).__name__}: got {error}: {CURE}.", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
