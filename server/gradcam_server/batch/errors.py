"""Errors that end a job. An error of a single image is a row of its shard."""

from gradcam_server.errors import ExplanationServerError


class BatchError(ExplanationServerError):
    """Base of errors that end a job. Finished shards stay; the same command does the rest."""


class InputError(BatchError):
    """There are no inputs, or they cannot be listed or read."""


class OutputError(BatchError):
    """The output folder holds another job, is in use, is full, or cannot be written."""


class StageError(BatchError):
    """Images cannot be explained: a wrong option, or no server that answers."""


class TooManyErrorsError(BatchError):
    """More images failed than ``--errors-max`` allows."""
