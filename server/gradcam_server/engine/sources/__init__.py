"""Where graphs come from: models, which TensorFlow traces, or exports."""
