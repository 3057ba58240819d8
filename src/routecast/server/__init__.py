"""The server: settings, the application, and the processes that serve it."""
