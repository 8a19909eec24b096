"""``gradcam.v1`` on Ray Serve: replicas behind its gRPC proxy.

    client -> Serve's gRPC proxy (proxy.py) -> a replica (replica.py) -> service.py, as in a server

``app.py`` alone imports Ray, so the rest is tested without it.
"""
