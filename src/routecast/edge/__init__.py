"""The edges: HTTP, WebSocket and server-sent events. No SQL, no arithmetic."""
