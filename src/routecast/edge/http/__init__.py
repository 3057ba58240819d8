"""HTTP, by ASGI and on the transport."""
