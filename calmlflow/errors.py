"""Define the exceptions of the project."""


class CalmlflowError(Exception):
    """A failure that is not a bug. Its text is one sentence: what was wrong, and what was expected."""


class InputError(CalmlflowError, ValueError):
    """A value given by a user or found in a file breaks its rule."""
