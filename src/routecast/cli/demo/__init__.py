"""`routecast demo`."""
