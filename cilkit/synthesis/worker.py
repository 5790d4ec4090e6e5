"""One painting process, `python -m cilkit.synthesis.worker JOB [--tied]`: works off a job's shards, a line a batch.

Started by a `Crew`, or by hand on any machine that sees the job's folder. tied: it ends when its input does, which is
when the process that started it is gone.
"""

import json
import os
import sys
import threading
from pathlib import Path

from cilkit.errors import UserError
from cilkit.synthesis.crew import describe
from cilkit.synthesis.job import Job, work


def main(folder: str, tied: bool) -> int:
    """Paint until no shard is left. Answers in lines of JSON: {"images": painted now} or {"error": why it ends}.

    Returns the exit status.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log, not among the answers
    if tied:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job = Job(Path(folder))
        for images in work(job, job.load()):
            print(json.dumps({"images": images}), file=answers)
    except Exception as error:  # the parent decides what it means
        print(json.dumps(describe(error)), file=answers)
        if not isinstance(error, UserError):
            raise  # into the log
        return 1
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--tied" in sys.argv) if len(sys.argv) > 1 else __doc__)
