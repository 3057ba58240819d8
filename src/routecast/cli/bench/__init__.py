"""`routecast bench`: measure how a server serves many streams."""
