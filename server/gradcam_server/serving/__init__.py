"""Starts, watches, reloads and stops the processes of a server."""
