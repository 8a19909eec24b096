"""``gradcam`` with a memory leak that the soak test must catch. It is never shipped."""

from typing import Any

from gradcam_server.cli import main
from gradcam_server.domain.requests import ExplainedImage, ExplainRequest
from gradcam_server.pipeline.pipeline import Pipeline

LEAKED_BYTES = 20_000
_explain = Pipeline.explain
_leaked: list[bytearray] = []


async def _explain_and_leak(
    self: Pipeline, request: ExplainRequest, **options: Any
) -> ExplainedImage:
    _leaked.append(bytearray(b"x" * LEAKED_BYTES))
    return await _explain(self, request, **options)


def run() -> None:
    """Runs ``gradcam``; each request leaks some kilobytes of the front end."""
    setattr(Pipeline, "explain", _explain_and_leak)  # noqa: B010 - mypy
    main()


if __name__ == "__main__":
    run()
