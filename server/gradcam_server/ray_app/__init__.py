"""``gradcam.v1`` on Ray Serve: replicas behind its gRPC proxy.

    client -> Ray's gRPC proxy (proxy.py) -> a replica (replica.py) -> transport/gradcam_v1/

app.py          the application; alone imports Ray, so the other modules are tested without it
settings.py     the settings, from the arguments of the application
proxy.py        what the proxy adds: deadlines, and UNAVAILABLE for lost replicas
replica.py      the models and the service in one process
context.py      a call on Ray Serve, as the services use it
autoscaling.py  the number of replicas, from the images in work
"""
