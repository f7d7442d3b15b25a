"""The exception for mistakes that the user can fix."""


class UserError(ValueError):
    """A mistake that the user can fix: the message says what is wrong and what to do.

    Scripts print the message as one line on stderr and exit with code 2 (`cxr_tf.cli`).
    """
