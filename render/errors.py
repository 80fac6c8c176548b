"""The one exception of this package: something a user asked for cannot be drawn or read as asked."""


class RenderError(ValueError):
    """One line for the user: what, where, the rule, the remedy. Command lines turn it into exit status 2."""
