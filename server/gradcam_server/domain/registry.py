"""The registry of explanation methods: one row a method, free of TensorFlow.

It stands in the domain because requests, ``--warm`` and the catalog depend on it. A row names
the function that computes the map; ``methods.one_pass`` and ``methods.many_pass`` hold them.
"""

from dataclasses import dataclass

from gradcam_server.domain.requests import Method


@dataclass(frozen=True)
class MethodRow:
    """One explanation method.

    Attributes:
        method: Its name in requests.
        function: The function that computes the map, in ``methods.one_pass``, or in
            ``methods.many_pass`` for a method of many passes.
        contrast: The function of ``methods.one_pass`` that chooses the classes whose scores are
            subtracted from the target's.
        needs_gradient: Whether the map depends on the gradient; else no gradient is computed, and
            all targets have the same map.
        decomposes: Whether the map takes an eigendecomposition. Then each further target is
            costly, and OpenVINO cannot compute it.
        default_passes: The passes of a request that does not say how many; 0 for a method of one.
    """

    method: Method
    function: str
    contrast: str = "requested_class"
    needs_gradient: bool = True
    decomposes: bool = False
    default_passes: int = 0


REGISTRY = {
    row.method: row
    for row in (
        MethodRow(Method.GRAD_CAM, "grad_cam"),
        MethodRow(Method.GRAD_CAM_PLUS_PLUS, "grad_cam_plus_plus"),
        MethodRow(Method.HIRES_CAM, "hires_cam"),
        MethodRow(Method.X_GRAD_CAM, "x_grad_cam"),
        MethodRow(Method.LAYER_CAM, "layer_cam"),
        MethodRow(Method.ELEMENTWISE_GRAD_CAM, "elementwise_grad_cam"),
        MethodRow(Method.EIGEN_GRAD_CAM, "eigen_grad_cam", decomposes=True),
        MethodRow(Method.FINER_CAM, "grad_cam", contrast="similar_classes"),
        MethodRow(Method.EIGEN_CAM, "eigen_cam", needs_gradient=False, decomposes=True),
        MethodRow(Method.SCORE_CAM, "score_cam", default_passes=64),
        MethodRow(Method.INTEGRATED_GRADIENTS, "integrated_gradients", default_passes=32),
    )
}
MANY_PASS_METHODS = tuple(row.method for row in REGISTRY.values() if row.default_passes)
ONE_PASS_METHODS = tuple(row.method for row in REGISTRY.values() if not row.default_passes)


def differentiated_as(method: Method) -> Method:
    """Returns the first method of one pass whose graph is the same up to the maps."""
    row = REGISTRY[method]
    return next(
        one.method
        for one in REGISTRY.values()
        if (one.contrast, one.needs_gradient) == (row.contrast, row.needs_gradient)
    )
