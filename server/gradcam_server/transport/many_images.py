"""Explains the images of one request at the same time."""

import asyncio
from collections.abc import Sequence

from gradcam_server.domain.requests import ExplainedImage, ExplainRequest
from gradcam_server.errors import InvalidRequestError
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.ledger import Claim
from gradcam_server.pipeline.pipeline import Reserved
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.sending import forget_frames


async def explain_images(
    calls: Calls,
    explainer: Explainer,
    images: Sequence[ExplainRequest],
    claim: Claim,
    *,
    wait: bool,
) -> list[ExplainedImage]:
    """Explains images at the same time, so that they share batches.

    Args:
        calls: Counts the images toward the rate of the caller's token.
        explainer: Explains them.
        images: The images.
        claim: The memory of the request.
        wait: Wait for the rate, memory and a slot in the queue, as all messages of streams do,
            instead of failing.

    Raises:
        InvalidRequestError: An image is bad; if there are several, the text names it.
        ExplanationServerError: The request is refused, as are requests of one image.
    """
    await calls.count_images(len(images), streamed=wait)
    reserved = await explainer.reserve(images, claim, wait=wait)
    try:
        async with asyncio.TaskGroup() as group:
            # Once the first image has a slot in the queue, the others wait for slots: otherwise
            # a request of more images than the queue has slots would always be refused.
            tasks = [
                group.create_task(
                    _explain(explainer, image, memory, index, len(images), wait=wait or index > 0)
                )
                for index, (image, memory) in enumerate(zip(images, reserved, strict=True))
            ]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _explain(
    explainer: Explainer,
    image: ExplainRequest,
    reserved: Reserved,
    index: int,
    count: int,
    *,
    wait: bool,
) -> ExplainedImage:
    try:
        return await explainer.explain(image, wait_for_slot=wait, reserved=reserved)
    except InvalidRequestError as error:
        if count == 1:
            raise
        forget_frames(error)
        raise InvalidRequestError(error.field, f"image {index}: {error}") from error
