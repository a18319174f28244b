"""Failures that end a command, each with the exit code it stands for."""


class DevclusterError(Exception):
    """A step failed; the message names the step and what to look at."""

    exit_code = 1


class UsageError(DevclusterError):
    """The command line or the state directory cannot be used as given."""

    exit_code = 2


class MissingPrerequisiteError(DevclusterError):
    """This machine cannot hold the cluster: root, Debian, packages or namespaces are missing."""

    exit_code = 3
