"""An engine without a model, which answers at once: only the server's own time remains."""

from functools import cache

import numpy as np

from gradcam_server.domain.catalog import Catalog, ServedModel, graph_keys
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, OnDispatch, Urgency

INPUT_SIZE = (224, 224)
CLASSES = 1000
_REPORT = BatchReport(1, 1, DispatchReason.IDLE, 0)


class InstantBackend:
    """Answers every image at once with the same logits and map.

    Attributes:
        items: The items that it got, the latest last, if ``keep``.
    """

    compilation_count = 0

    def __init__(self, *, keep: bool = False) -> None:
        layer = LayerInfo("top", "Conv2D", (None, 7, 7, 8), True)
        labels = ClassLabels([ClassLabel(f"class {index}") for index in range(CLASSES)])
        model = ServedModel(
            *("instant", "", labels, (layer,), "top", INPUT_SIZE),
            *(Preprocessing.NONE, "none", True),
        )
        keys = graph_keys(model, ("top",), Method.GRAD_CAM, ScoreType.LOGIT, 5)
        self.catalog = Catalog((model,), tuple(keys), (1,), 5)
        self.items: list[GraphItem] = []
        self._keep = keep
        self._logits = np.linspace(0, 1, CLASSES, dtype=np.float32)
        self._map = np.random.default_rng(0).random((1, 7, 7), dtype=np.float32)
        self._answer = cache(self._make_answer)

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[GraphOutput]:
        """Answers."""
        if self._keep:
            self.items.append(item)
        if on_dispatch is not None:
            on_dispatch()
        return self._answer(len(item.targets))

    async def close(self) -> None:
        """Does nothing."""

    def _make_answer(self, count: int) -> Answer[GraphOutput]:
        output = GraphOutput(
            self._logits,
            self._logits,
            np.arange(count, dtype=np.int32),
            self._logits[:count],
            (np.repeat(self._map, count, axis=0),),
        )
        return Answer(output, _REPORT)
