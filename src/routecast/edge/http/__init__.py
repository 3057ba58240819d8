"""The HTTP edge: the connection protocol, and the ASGI routes."""
