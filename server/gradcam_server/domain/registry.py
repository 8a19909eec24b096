"""The registry of explanation methods: one row for each method, free of TensorFlow.

It is part of the domain because ``--warm`` and the catalog read it. The functions that its rows
name are in ``methods.one_pass`` and ``methods.many_pass``.
"""

from dataclasses import dataclass

from gradcam_server.domain.requests import Method


@dataclass(frozen=True)
class MethodRow:
    """One explanation method.

    Attributes:
        method: The name of the method.
        function: The name of the function that computes the map, in ``methods.one_pass``, or in
            ``methods.many_pass`` for a method of many passes.
        contrast: The name of the function that chooses the explained score, in
            ``methods.one_pass``.
        needs_gradient: Whether the map depends on the gradient. If not, no gradient is computed
            and all targets have the same map.
        decomposes: Whether the map takes an eigendecomposition, which is costly for each target
            and which OpenVINO lacks.
        default_passes: Passes of a request without ``pass_count``; 0 for a method of one pass.
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
    """Returns the first method whose graph is the same up to the maps."""
    row = REGISTRY[method]
    return next(
        one.method
        for one in REGISTRY.values()
        if (one.contrast, one.needs_gradient) == (row.contrast, row.needs_gradient)
    )
