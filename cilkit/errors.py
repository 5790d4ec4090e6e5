"""The two ways in which cilkit stops on purpose."""

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one sentence: the value, what was expected, what to do."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: the sentence is all that the reader needs."""
        return [f"{type(self).__name__}: {self}"]


class Stopped(KeyboardInterrupt):
    """Interrupted by a person. Everything finished so far is kept; the next run goes on from there.

    A KeyboardInterrupt, so that "Run All" ends instead of going on with the next cell.
    """

    _render_traceback_ = UserError._render_traceback_


def near_name(name: object, known: Iterable[str], cutoff: float = 0.4) -> str:
    """ " (did you mean 'slca'?)" for a misspelt name, to stand in a sentence; nothing where no known name is near."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""


def reason_of(error: BaseException) -> str:
    """The first line of what another library says, short enough for a sentence of ours."""
    import textwrap

    return textwrap.shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200, placeholder=" …")
