"""Every reply of a language model, kept on disk the moment it arrives: an interrupted asking goes on from there."""

from collections.abc import Sequence
from pathlib import Path

from cilkit.realms.prompts import Message
from cilkit.realms.realm import Reply, read_replies, write_reply


class Journal:
    """Replies by the messages that they answer, as `replies/NNN.json` in `folder` (None: in memory only)."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder and Path(folder)
        self.replies: list[Reply] = read_replies(self.folder)[0] if self.folder else []

    def find(self, messages: Sequence[Message]) -> Reply | None:
        """The reply to these messages, word for word."""
        return next((reply for reply in self.replies if list(reply.messages) == list(messages)), None)

    def add(self, reply: Reply) -> None:
        """Keep a reply, whole or not at all; one to the same messages is replaced (its error became known)."""
        old = self.find(reply.messages)
        number = self.replies.index(old) if old else len(self.replies)
        self.replies[number : number + 1] = [reply]
        if self.folder:
            write_reply(self.folder, number + 1, reply)
