"""WebSocket, on the transport and by ASGI."""
