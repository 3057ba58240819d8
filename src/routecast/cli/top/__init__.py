"""`routecast top`: a server's nodes and connections in the terminal."""
