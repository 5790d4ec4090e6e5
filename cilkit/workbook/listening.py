"""What a kernel says while papermill executes a notebook: told cell by cell, without the environment's secrets.

Messages are sieved as they arrive, so that neither the growing notebook nor the log nor the terminal ever holds one.
Importing this imports papermill.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.iorw import LocalHandler, papermill_io
from papermill.log import logger

from cilkit.hiding import Sieve, hidden

NAME = "cilkit"  # of the engine, among papermill's
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Listener(Protocol):
    environment: Mapping[str, str]  # the kernel's

    def begins(self, cell: int, cells: int) -> None:
        """Code cell number `cell`, counted from 1, is about to run."""

    def says(self, text: str, stream: str) -> None:
        """Some output of it: stream "stdout", "stderr" or "error" (a traceback)."""

    def ends(self) -> None:
        """It has ended, however."""


class Client(PapermillNotebookClient):
    """papermill's client, with a listener."""

    def __init__(self, nb_man: Any, listener: Listener, **kwargs: Any) -> None:
        super().__init__(nb_man, **kwargs)
        self.listener = listener
        self.sieves: dict[str, Sieve] = {}

    def papermill_execute_cells(self) -> None:
        """papermill's own, without its saving of the whole notebook before and after each cell of text."""
        for index, cell in enumerate(self.nb.cells):
            if cell.cell_type != "code":
                continue
            self.nb_man.cell_start(cell, index)
            try:
                self.execute_cell(cell, index)
            except CellExecutionError as error:
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                break
            finally:
                self.nb_man.cell_complete(cell, cell_index=index)

    def execute_cell(self, cell: Any, cell_index: int, **kwargs: Any) -> Any:
        code = [index for index, other in enumerate(self.nb.cells) if other.cell_type == "code"]
        self.sieves = {name: Sieve(self.listener.environment) for name in ("stdout", "stderr")}
        self.listener.begins(code.index(cell_index) + 1, len(code))
        try:
            return super().execute_cell(cell, cell_index, **kwargs)
        finally:
            for name, sieve in self.sieves.items():
                if rest := sieve.rest():
                    cell.outputs.append(new_output("stream", name=name, text=rest))
                    self.listener.says(rest, name)
            self.listener.ends()

    def process_message(self, msg: dict, cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] == "stream":
            content["text"] = self.sieves[content["name"]].sift(content["text"])
            if not content["text"]:
                return None
        else:
            msg["content"] = hidden(content, self.listener.environment)
        output = super().process_message(msg, cell, cell_index)
        if output and output.output_type == "stream":
            self.listener.says(output.text, output.name)
        elif output and output.output_type == "error":
            self.listener.says(COLOURS.sub("", "\n".join(output.traceback)) + "\n", "error")
        return output


class Engine(NBClientEngine):
    """papermill's engine, with `Client`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, listener: Listener = None, **kwargs: Any) -> None:
        wanted = {name: kwargs[name] for name in ("kernel_manager_class", "shutdown_kernel")}
        wanted |= {"kernel_name": kernel_name, "startup_timeout": kwargs["start_timeout"], "log": logger}
        Client(nb_man, listener, **wanted).execute()


papermill_engines.register(NAME, Engine)
# papermill's handler of files changes the directory of the whole process around each save, which several at once do not
# bear: one may leave another's behind. Our paths begin at the root and need none.
papermill_io.register("/", LocalHandler())
