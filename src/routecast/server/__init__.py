"""The server: settings, the application and its parts, and the processes that serve it."""
