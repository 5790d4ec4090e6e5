"""Every reply of a language model, kept on disk the moment it arrives: an interrupted asking goes on from there."""

from collections.abc import Sequence
from pathlib import Path

from cilkit.realms.prompts import Message
from cilkit.realms.realm import Reply, read_replies, write_reply


class Journal:
    """Replies by the messages that they answer, as `replies/NNN.json` in `folder` (None: in memory only)."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder and Path(folder)
        self.replies, files = read_replies(self.folder) if self.folder else ([], [])
        self._numbers = [int(Path(file).stem) for file in files]

    def find(self, messages: Sequence[Message]) -> Reply | None:
        """The reply to these messages, word for word."""
        return next((reply for reply in self.replies if list(reply.messages) == list(messages)), None)

    def add(self, reply: Reply) -> None:
        """Keep a reply, whole or not at all; one to the same messages is replaced (its error became known)."""
        old = self.find(reply.messages)
        place = self.replies.index(old) if old else len(self.replies)
        self.replies[place : place + 1] = [reply]
        if not old:  # a file may have been deleted, so that its question is asked again
            self._numbers.append(max(self._numbers, default=0) + 1)
        if self.folder:
            write_reply(self.folder, self._numbers[place], reply)
