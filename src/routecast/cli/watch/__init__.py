"""`routecast watch`."""
