"""The one exception that stands for a mistake of the user."""


class UserError(ValueError):
    """Something the user can put right: the message says what is wrong and what to do.

    Scripts print it as one line on stderr and exit with code 2 (`cxr_tf.cli`).
    """
