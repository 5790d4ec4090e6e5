"""One painting process of a crew, `python -m cilkit.synthesis.worker ORDER`: requests in, answers out, in lines."""

import json
import os
import sys

from cilkit.artifacts import save_npy
from cilkit.errors import UserError
from cilkit.synthesis.crew import describe
from cilkit.synthesis.generators import load_generator
from cilkit.synthesis.paint import paint_batch


def main(order: dict) -> None:
    """Load the generator, then paint batch after batch until the input ends or the parent is gone."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log, not among the answers
    parent = os.getppid()
    painter = load_generator(order["spec"], **order["settings"])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if painter.digest != order["digest"]:
                raise UserError(f"generator {painter.id} changed while it was painting; run it again")
            images = paint_batch(painter, request)
            if os.getppid() != parent:
                return  # the parent was killed, and another may be painting this batch already
            save_npy(request["file"], images)
            answer = {"batch": request["batch"]}
        except Exception as error:  # the parent decides what it means
            answer = describe(error)
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
