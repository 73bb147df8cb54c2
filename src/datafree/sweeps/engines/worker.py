"""A process of a sweep on this machine: jobs come as JSON lines, outcomes go back likewise."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict

from datafree.sweeps.computing import Job, compute


def main() -> None:
    """Compute jobs from standard input until it ends, which ends this process at once.

    It ends when the sweep does, also one that was killed: nobody computes on unasked. What is being
    written then is left out, never torn.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep ends its processes itself
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    while True:
        outcome = compute(jobs.get())
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()


def _read(jobs: queue.SimpleQueue[Job]) -> None:
    for line in sys.stdin:
        jobs.put(Job(**json.loads(line)))
    os._exit(0)  # a thread ends its process no other way


if __name__ == "__main__":
    main()
