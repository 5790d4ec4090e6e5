"""pytest plugin (`python -m pytest -p tests.live_endpoint`): a language model's server for kernels that tests start.

The server of `openai_server` listens on a free port for the whole session, each xdist worker with its own, and the
environment names it, so that `llm: endpoint:tiny-model` in a parameter file reaches it.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from openai_server import Foresight, Server

_server = None


def pytest_configure(config):
    global _server
    if _server is None:
        _server = Server(Foresight(moods=True)).__enter__()
        os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"] = _server.url, "test"


def pytest_unconfigure(config):
    global _server
    if _server is not None:
        _server.__exit__()
        _server = None
