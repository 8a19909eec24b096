"""The sources of ``gradcam watch``: cameras, streams, video files and folders."""
