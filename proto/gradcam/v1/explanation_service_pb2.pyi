from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_TYPE_UNSPECIFIED: _ClassVar[ScoreType]
    SCORE_TYPE_LOGIT: _ClassVar[ScoreType]
    SCORE_TYPE_PROBABILITY: _ClassVar[ScoreType]

class LayerFusion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYER_FUSION_UNSPECIFIED: _ClassVar[LayerFusion]
    LAYER_FUSION_NONE: _ClassVar[LayerFusion]
    LAYER_FUSION_LAYER_CAM: _ClassVar[LayerFusion]

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_GRAD_CAM: _ClassVar[Method]
    METHOD_GRAD_CAM_PLUS_PLUS: _ClassVar[Method]
    METHOD_HIRES_CAM: _ClassVar[Method]
    METHOD_X_GRAD_CAM: _ClassVar[Method]
    METHOD_LAYER_CAM: _ClassVar[Method]
    METHOD_ELEMENTWISE_GRAD_CAM: _ClassVar[Method]
    METHOD_EIGEN_GRAD_CAM: _ClassVar[Method]
    METHOD_SCORE_CAM: _ClassVar[Method]
    METHOD_INTEGRATED_GRADIENTS: _ClassVar[Method]
    METHOD_FINER_CAM: _ClassVar[Method]
    METHOD_EIGEN_CAM: _ClassVar[Method]

class ResizeMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIZE_MODE_UNSPECIFIED: _ClassVar[ResizeMode]
    RESIZE_MODE_STRETCH: _ClassVar[ResizeMode]
    RESIZE_MODE_CENTER_CROP: _ClassVar[ResizeMode]
    RESIZE_MODE_LETTERBOX: _ClassVar[ResizeMode]

class HeatmapFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEATMAP_FORMAT_UNSPECIFIED: _ClassVar[HeatmapFormat]
    HEATMAP_FORMAT_RAW_FLOAT32: _ClassVar[HeatmapFormat]
    HEATMAP_FORMAT_IMAGE_FLOAT32: _ClassVar[HeatmapFormat]
    HEATMAP_FORMAT_GRAY_PNG: _ClassVar[HeatmapFormat]
    HEATMAP_FORMAT_OVERLAY_JPEG: _ClassVar[HeatmapFormat]
    HEATMAP_FORMAT_OVERLAY_PNG: _ClassVar[HeatmapFormat]

class Colormap(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLORMAP_UNSPECIFIED: _ClassVar[Colormap]
    COLORMAP_JET: _ClassVar[Colormap]
    COLORMAP_TURBO: _ClassVar[Colormap]
    COLORMAP_VIRIDIS: _ClassVar[Colormap]
    COLORMAP_INFERNO: _ClassVar[Colormap]

class Normalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMALIZATION_UNSPECIFIED: _ClassVar[Normalization]
    NORMALIZATION_NONE: _ClassVar[Normalization]
    NORMALIZATION_MAX: _ClassVar[Normalization]

class Interpolation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_UNSPECIFIED: _ClassVar[Interpolation]
    INTERPOLATION_NONE: _ClassVar[Interpolation]
    INTERPOLATION_BILINEAR: _ClassVar[Interpolation]

class DispatchReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISPATCH_REASON_UNSPECIFIED: _ClassVar[DispatchReason]
    DISPATCH_REASON_FULL: _ClassVar[DispatchReason]
    DISPATCH_REASON_DELAY: _ClassVar[DispatchReason]
    DISPATCH_REASON_IDLE: _ClassVar[DispatchReason]
SCORE_TYPE_UNSPECIFIED: ScoreType
SCORE_TYPE_LOGIT: ScoreType
SCORE_TYPE_PROBABILITY: ScoreType
LAYER_FUSION_UNSPECIFIED: LayerFusion
LAYER_FUSION_NONE: LayerFusion
LAYER_FUSION_LAYER_CAM: LayerFusion
METHOD_UNSPECIFIED: Method
METHOD_GRAD_CAM: Method
METHOD_GRAD_CAM_PLUS_PLUS: Method
METHOD_HIRES_CAM: Method
METHOD_X_GRAD_CAM: Method
METHOD_LAYER_CAM: Method
METHOD_ELEMENTWISE_GRAD_CAM: Method
METHOD_EIGEN_GRAD_CAM: Method
METHOD_SCORE_CAM: Method
METHOD_INTEGRATED_GRADIENTS: Method
METHOD_FINER_CAM: Method
METHOD_EIGEN_CAM: Method
RESIZE_MODE_UNSPECIFIED: ResizeMode
RESIZE_MODE_STRETCH: ResizeMode
RESIZE_MODE_CENTER_CROP: ResizeMode
RESIZE_MODE_LETTERBOX: ResizeMode
HEATMAP_FORMAT_UNSPECIFIED: HeatmapFormat
HEATMAP_FORMAT_RAW_FLOAT32: HeatmapFormat
HEATMAP_FORMAT_IMAGE_FLOAT32: HeatmapFormat
HEATMAP_FORMAT_GRAY_PNG: HeatmapFormat
HEATMAP_FORMAT_OVERLAY_JPEG: HeatmapFormat
HEATMAP_FORMAT_OVERLAY_PNG: HeatmapFormat
COLORMAP_UNSPECIFIED: Colormap
COLORMAP_JET: Colormap
COLORMAP_TURBO: Colormap
COLORMAP_VIRIDIS: Colormap
COLORMAP_INFERNO: Colormap
NORMALIZATION_UNSPECIFIED: Normalization
NORMALIZATION_NONE: Normalization
NORMALIZATION_MAX: Normalization
INTERPOLATION_UNSPECIFIED: Interpolation
INTERPOLATION_NONE: Interpolation
INTERPOLATION_BILINEAR: Interpolation
DISPATCH_REASON_UNSPECIFIED: DispatchReason
DISPATCH_REASON_FULL: DispatchReason
DISPATCH_REASON_DELAY: DispatchReason
DISPATCH_REASON_IDLE: DispatchReason

class ExplainImageRequest(_message.Message):
    __slots__ = ("model", "encoded_image", "raw_image", "targets", "top_k", "layers", "method", "resize_mode", "heatmaps", "prediction_count", "include_logits", "score_type", "layer_fusion", "pass_count", "smooth_grad", "model_version", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    RAW_IMAGE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RESIZE_MODE_FIELD_NUMBER: _ClassVar[int]
    HEATMAPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_LOGITS_FIELD_NUMBER: _ClassVar[int]
    SCORE_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FUSION_FIELD_NUMBER: _ClassVar[int]
    PASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    SMOOTH_GRAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    encoded_image: bytes
    raw_image: RawImage
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    top_k: int
    layers: _containers.RepeatedScalarFieldContainer[str]
    method: Method
    resize_mode: ResizeMode
    heatmaps: _containers.RepeatedCompositeFieldContainer[HeatmapRequest]
    prediction_count: int
    include_logits: bool
    score_type: ScoreType
    layer_fusion: LayerFusion
    pass_count: int
    smooth_grad: SmoothGrad
    model_version: str
    priority: int
    def __init__(self, model: _Optional[str] = ..., encoded_image: _Optional[bytes] = ..., raw_image: _Optional[_Union[RawImage, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., top_k: _Optional[int] = ..., layers: _Optional[_Iterable[str]] = ..., method: _Optional[_Union[Method, str]] = ..., resize_mode: _Optional[_Union[ResizeMode, str]] = ..., heatmaps: _Optional[_Iterable[_Union[HeatmapRequest, _Mapping]]] = ..., prediction_count: _Optional[int] = ..., include_logits: bool = ..., score_type: _Optional[_Union[ScoreType, str]] = ..., layer_fusion: _Optional[_Union[LayerFusion, str]] = ..., pass_count: _Optional[int] = ..., smooth_grad: _Optional[_Union[SmoothGrad, _Mapping]] = ..., model_version: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class SmoothGrad(_message.Message):
    __slots__ = ("sample_count", "noise_level")
    SAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    NOISE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    sample_count: int
    noise_level: float
    def __init__(self, sample_count: _Optional[int] = ..., noise_level: _Optional[float] = ...) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("data", "height_px", "width_px")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height_px: int
    width_px: int
    def __init__(self, data: _Optional[bytes] = ..., height_px: _Optional[int] = ..., width_px: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("class_index", "class_name", "against_class_index", "against_class_name")
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    AGAINST_CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    AGAINST_CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    class_index: int
    class_name: str
    against_class_index: int
    against_class_name: str
    def __init__(self, class_index: _Optional[int] = ..., class_name: _Optional[str] = ..., against_class_index: _Optional[int] = ..., against_class_name: _Optional[str] = ...) -> None: ...

class HeatmapRequest(_message.Message):
    __slots__ = ("format", "alpha", "colormap", "jpeg_quality")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    COLORMAP_FIELD_NUMBER: _ClassVar[int]
    JPEG_QUALITY_FIELD_NUMBER: _ClassVar[int]
    format: HeatmapFormat
    alpha: float
    colormap: Colormap
    jpeg_quality: int
    def __init__(self, format: _Optional[_Union[HeatmapFormat, str]] = ..., alpha: _Optional[float] = ..., colormap: _Optional[_Union[Colormap, str]] = ..., jpeg_quality: _Optional[int] = ...) -> None: ...

class ExplainImageResponse(_message.Message):
    __slots__ = ("model", "image_height_px", "image_width_px", "predictions", "explanations", "logits", "stats", "model_version", "preprocessing", "preprocessing_declared")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_DECLARED_FIELD_NUMBER: _ClassVar[int]
    model: str
    image_height_px: int
    image_width_px: int
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    logits: _containers.RepeatedScalarFieldContainer[float]
    stats: ServingStats
    model_version: str
    preprocessing: str
    preprocessing_declared: bool
    def __init__(self, model: _Optional[str] = ..., image_height_px: _Optional[int] = ..., image_width_px: _Optional[int] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ..., logits: _Optional[_Iterable[float]] = ..., stats: _Optional[_Union[ServingStats, _Mapping]] = ..., model_version: _Optional[str] = ..., preprocessing: _Optional[str] = ..., preprocessing_declared: bool = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("class_index", "class_name", "probability", "logit")
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    class_index: int
    class_name: str
    probability: float
    logit: float
    def __init__(self, class_index: _Optional[int] = ..., class_name: _Optional[str] = ..., probability: _Optional[float] = ..., logit: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("class_index", "class_name", "score", "layer", "method", "raw_min", "raw_max", "degenerate", "heatmaps", "score_type", "saturated", "against_class_index", "against_class_name", "extent", "image_extent")
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RAW_MIN_FIELD_NUMBER: _ClassVar[int]
    RAW_MAX_FIELD_NUMBER: _ClassVar[int]
    DEGENERATE_FIELD_NUMBER: _ClassVar[int]
    HEATMAPS_FIELD_NUMBER: _ClassVar[int]
    SCORE_TYPE_FIELD_NUMBER: _ClassVar[int]
    SATURATED_FIELD_NUMBER: _ClassVar[int]
    AGAINST_CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    AGAINST_CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_EXTENT_FIELD_NUMBER: _ClassVar[int]
    class_index: int
    class_name: str
    score: float
    layer: str
    method: Method
    raw_min: float
    raw_max: float
    degenerate: bool
    heatmaps: _containers.RepeatedCompositeFieldContainer[Heatmap]
    score_type: ScoreType
    saturated: bool
    against_class_index: int
    against_class_name: str
    extent: Extent
    image_extent: Extent
    def __init__(self, class_index: _Optional[int] = ..., class_name: _Optional[str] = ..., score: _Optional[float] = ..., layer: _Optional[str] = ..., method: _Optional[_Union[Method, str]] = ..., raw_min: _Optional[float] = ..., raw_max: _Optional[float] = ..., degenerate: bool = ..., heatmaps: _Optional[_Iterable[_Union[Heatmap, _Mapping]]] = ..., score_type: _Optional[_Union[ScoreType, str]] = ..., saturated: bool = ..., against_class_index: _Optional[int] = ..., against_class_name: _Optional[str] = ..., extent: _Optional[_Union[Extent, _Mapping]] = ..., image_extent: _Optional[_Union[Extent, _Mapping]] = ...) -> None: ...

class Extent(_message.Message):
    __slots__ = ("top_px", "left_px", "height_px", "width_px")
    TOP_PX_FIELD_NUMBER: _ClassVar[int]
    LEFT_PX_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    top_px: float
    left_px: float
    height_px: float
    width_px: float
    def __init__(self, top_px: _Optional[float] = ..., left_px: _Optional[float] = ..., height_px: _Optional[float] = ..., width_px: _Optional[float] = ...) -> None: ...

class Heatmap(_message.Message):
    __slots__ = ("format", "height_px", "width_px", "data", "normalization", "interpolation")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    format: HeatmapFormat
    height_px: int
    width_px: int
    data: bytes
    normalization: Normalization
    interpolation: Interpolation
    def __init__(self, format: _Optional[_Union[HeatmapFormat, str]] = ..., height_px: _Optional[int] = ..., width_px: _Optional[int] = ..., data: _Optional[bytes] = ..., normalization: _Optional[_Union[Normalization, str]] = ..., interpolation: _Optional[_Union[Interpolation, str]] = ...) -> None: ...

class ServingStats(_message.Message):
    __slots__ = ("decode_us", "queue_us", "compute_us", "render_us", "batch_size", "padded_batch_size", "pass_count", "dispatch_reason", "compile_us")
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    RENDER_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PADDED_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_REASON_FIELD_NUMBER: _ClassVar[int]
    COMPILE_US_FIELD_NUMBER: _ClassVar[int]
    decode_us: int
    queue_us: int
    compute_us: int
    render_us: int
    batch_size: int
    padded_batch_size: int
    pass_count: int
    dispatch_reason: DispatchReason
    compile_us: int
    def __init__(self, decode_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., render_us: _Optional[int] = ..., batch_size: _Optional[int] = ..., padded_batch_size: _Optional[int] = ..., pass_count: _Optional[int] = ..., dispatch_reason: _Optional[_Union[DispatchReason, str]] = ..., compile_us: _Optional[int] = ...) -> None: ...

class StreamExplainImagesRequest(_message.Message):
    __slots__ = ("correlation_id", "request", "report_progress")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REPORT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    correlation_id: str
    request: ExplainImageRequest
    report_progress: bool
    def __init__(self, correlation_id: _Optional[str] = ..., request: _Optional[_Union[ExplainImageRequest, _Mapping]] = ..., report_progress: bool = ...) -> None: ...

class StreamExplainImagesResponse(_message.Message):
    __slots__ = ("correlation_id", "response", "error", "progress")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    correlation_id: str
    response: ExplainImageResponse
    error: _status_pb2.Status
    progress: Progress
    def __init__(self, correlation_id: _Optional[str] = ..., response: _Optional[_Union[ExplainImageResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("completed_pass_count", "total_pass_count")
    COMPLETED_PASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    completed_pass_count: int
    total_pass_count: int
    def __init__(self, completed_pass_count: _Optional[int] = ..., total_pass_count: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "weights", "random_weights", "input_height_px", "input_width_px", "class_count", "default_layer", "compiled_layers", "batch_sizes", "methods", "max_target_count", "compilation_count", "classes", "layers", "version", "preprocessing", "preprocessing_declared")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    RANDOM_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    INPUT_WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    CLASS_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LAYER_FIELD_NUMBER: _ClassVar[int]
    COMPILED_LAYERS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    MAX_TARGET_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMPILATION_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_DECLARED_FIELD_NUMBER: _ClassVar[int]
    name: str
    weights: str
    random_weights: bool
    input_height_px: int
    input_width_px: int
    class_count: int
    default_layer: str
    compiled_layers: _containers.RepeatedScalarFieldContainer[str]
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    methods: _containers.RepeatedScalarFieldContainer[Method]
    max_target_count: int
    compilation_count: int
    classes: _containers.RepeatedCompositeFieldContainer[ModelClass]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    version: str
    preprocessing: str
    preprocessing_declared: bool
    def __init__(self, name: _Optional[str] = ..., weights: _Optional[str] = ..., random_weights: bool = ..., input_height_px: _Optional[int] = ..., input_width_px: _Optional[int] = ..., class_count: _Optional[int] = ..., default_layer: _Optional[str] = ..., compiled_layers: _Optional[_Iterable[str]] = ..., batch_sizes: _Optional[_Iterable[int]] = ..., methods: _Optional[_Iterable[_Union[Method, str]]] = ..., max_target_count: _Optional[int] = ..., compilation_count: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[ModelClass, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., version: _Optional[str] = ..., preprocessing: _Optional[str] = ..., preprocessing_declared: bool = ...) -> None: ...

class ModelClass(_message.Message):
    __slots__ = ("name", "aliases")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("name", "type", "output_shape", "explainable", "extent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    EXPLAINABLE_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    output_shape: _containers.RepeatedScalarFieldContainer[int]
    explainable: bool
    extent: Extent
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., output_shape: _Optional[_Iterable[int]] = ..., explainable: bool = ..., extent: _Optional[_Union[Extent, _Mapping]] = ...) -> None: ...
