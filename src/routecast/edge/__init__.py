"""Edges: how the world talks to the services. No SQL, no arithmetic."""
