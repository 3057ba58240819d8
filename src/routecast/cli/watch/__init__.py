"""`routecast watch`: live metrics in a terminal."""
