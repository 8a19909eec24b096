# syntax=docker/dockerfile:1
# docker build -t gradcam-server .                      for CPUs
# docker build -t gradcam-server --build-arg DEVICE=gpu .  for NVIDIA GPUs
# docker build -t gradcam-server --build-arg DEVICE=server,openvino .  for exports alone: no TensorFlow
# docker build -t gradcam-server --build-arg DEVICE=server,jax-cuda .  for exports for XLA, on GPUs
# docker run -p 127.0.0.1:50051:50051 -p 127.0.0.1:9464:9464 gradcam-server
#   serves the embedded model, and the page for people on http://127.0.0.1:9464/
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY examples/images examples/images
COPY proto proto
COPY server server
COPY client client
ARG DEVICE=cpu
RUN python -m venv /opt/gradcam \
    && /opt/gradcam/bin/pip install --no-cache-dir -c constraints.txt ".[${DEVICE},embedded]"

FROM python:${PYTHON_VERSION}-slim
COPY --from=build /opt/gradcam /opt/gradcam
RUN useradd --create-home --uid 10001 gradcam
USER 10001
WORKDIR /home/gradcam
# In a container all addresses are listened on, in plain text; who publishes the port decides
# who reaches it. docs/security.md says how to add TLS and tokens.
ENV PATH=/opt/gradcam/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    GRADCAM_HOST=0.0.0.0 \
    GRADCAM_PORT=50051 \
    GRADCAM_HTTP_HOST=0.0.0.0 \
    GRADCAM_HTTP_PORT=9464 \
    GRADCAM_UI=true \
    GRADCAM_ALLOW_INSECURE=true \
    GRADCAM_MODEL=efficientnet-lite0
EXPOSE 50051 9464
# Warming up takes a while; until then the server reports NOT_SERVING. With TLS the check needs
# GRADCAM_CLIENT_TLS_CA and, unless the certificate has 127.0.0.1, GRADCAM_CLIENT_TLS_SERVER_NAME;
# with mutual TLS GRADCAM_CLIENT_TLS_CERT and GRADCAM_CLIENT_TLS_KEY, too. It needs no token.
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 \
    CMD ["sh", "-c", "gradcam health 127.0.0.1:${GRADCAM_PORT}"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["gradcam"]
CMD ["serve"]
