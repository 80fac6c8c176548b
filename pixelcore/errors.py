"""The one exception for mistakes that a user can make and mend.

A command line turns a `UserError` into one line on standard error and exit status 2; every other exception is a fault
of ours and keeps its traceback. The message names the thing, its value, the rule and the remedy.
"""


class UserError(ValueError):
    """Something the user asked for cannot be done as asked; the message is one line and says what to do instead."""
