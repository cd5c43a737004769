"""The errors that a user can mend by changing the input."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: says what was got, what was expected and what to do.

    A ``ValueError``, so that callers need not know this class; the command line prints its
    message on one line and exits with code 2.
    """
