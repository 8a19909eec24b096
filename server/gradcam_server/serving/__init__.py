"""Starts, watches, reloads and stops the processes of a server.

server      the server process, from start to stop
reloading   replaces the models and tokens while the server runs
supervisor  keeps one engine running
front_ends  further processes that serve gRPC on the same port
"""
