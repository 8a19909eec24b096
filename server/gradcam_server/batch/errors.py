"""What can go wrong with a whole job; what goes wrong with one image is a row of its shard.

inputs     InputError: there is nothing to read, or not like that
output     OutputError: the folder is another job's, in use, or full
stage      StageError: nobody answers
rows       TooManyErrorsError: more images failed than were allowed
"""

from gradcam_server.errors import ExplanationServerError


class BatchError(ExplanationServerError):
    """Base of what ends a job. What is finished stays, and the same command goes on from there."""


class InputError(BatchError):
    """The inputs cannot be listed or read as asked."""


class OutputError(BatchError):
    """The output folder cannot be used, or written."""


class StageError(BatchError):
    """Images cannot be explained: a wrong option, or no server that answers."""


class TooManyErrorsError(BatchError):
    """More images failed than ``--errors-max`` allows."""
