"""`routecast replay`."""
