"""Imported by the commands before torch: how its threads wait, and what Ctrl-C does until then."""

import os
import signal
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - this file is read first
    sys.exit("error: nanorope needs Python 3.10 or newer")

# Threads that wait for each other sleep. By default they spin, also for a thread that has no core,
# and beside one other busy process a step takes 4 to 10 times as long (docs/speed.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Importing torch takes two seconds. Ctrl-C ends the command at once, with no traceback; once
# everything is imported, `errors.run` hands the signal back to Python.
signal.signal(signal.SIGINT, signal.SIG_DFL)
