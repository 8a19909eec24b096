"""The gRPC service ``gradcam.v1.ExplanationService``."""
