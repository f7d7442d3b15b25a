"""The exception for mistakes that the user can fix, and the text of other exceptions."""


class UserError(ValueError):
    """A mistake that the user can fix: the message says what is wrong and what to do.

    Scripts print the message as one line on stderr and exit with code 2 (`cxr_tf.cli`).
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
