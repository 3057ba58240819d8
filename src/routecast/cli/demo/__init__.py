"""`routecast demo`: a server with simulated traffic."""
