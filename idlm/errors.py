"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class UserError(Exception):
    """Bad usage or bad input: the command line prints it as one sentence and exits with 2.

    The message names the value that was given, what is allowed, and what to do next.
    """
