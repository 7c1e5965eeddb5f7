"""Imported by the commands before torch: how its threads wait, and what Ctrl-C does until then."""

import os
import signal
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - this file is read first
    sys.exit("error: nanorope needs Python 3.10 or newer")

# Threads that wait for each other spin this many times, then sleep. GNU's OpenMP spins for
# milliseconds otherwise, and beside one other busy process a step takes 5 to 36 times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Importing torch takes two seconds. Ctrl-C ends the command at once, with no traceback; once
# everything is imported, `errors.run` hands the signal back to Python.
signal.signal(signal.SIGINT, signal.SIG_DFL)
