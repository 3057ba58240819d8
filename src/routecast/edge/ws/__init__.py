"""The WebSocket edge: uvicorn's `ws` protocol class, and an ASGI route for other servers."""
