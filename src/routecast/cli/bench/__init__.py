"""`routecast bench`."""
