"""The error type for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in a file, a config value or a command.

    The message is one line: what is wrong, what was found, what is allowed, what to do next. Root scripts
    print it without a traceback and exit with status 2.
    """

    exit_status = 2
