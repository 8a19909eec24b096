"""The error of a source that cannot be watched."""

from gradcam_server.errors import ExplanationServerError


class SourceError(ExplanationServerError):
    """The source, or its name, is not one that can be watched as given."""
