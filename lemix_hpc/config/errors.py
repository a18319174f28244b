"""The one exception for mistakes that the user can mend."""


class UserError(Exception):
    """Bad input: the message names the thing and the way out; the command line prints it and exits with code 2."""
