"""`routecast replay`: send the decisions of a file to a server."""
