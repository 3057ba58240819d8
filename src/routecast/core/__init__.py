"""The logic of Routecast without I/O: no await, clock, environment or socket.

`now` is always an argument, in microseconds since 1970.
"""
