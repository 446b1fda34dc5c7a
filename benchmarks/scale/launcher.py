"""Runs a command and writes what it took to a file: launcher.py FILE COMMAND ...

A process of its own, as the kernel counts a child's largest resident set from that of the process it was forked from:
this one is small.
"""

import json
import os
import sys
import time

started = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    json.dump(
        {
            "peak_mib": round(usage.ru_maxrss / 1024, 1),
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        },
        file,
    )
sys.exit(os.waitstatus_to_exitcode(status))
