"""Benchmarks: ratios to a floor or another server, measured in the same run on the same machine.

`python -m benchmarks` runs them all. Every case has a process of its own; the runs of a case and
of what it is compared with alternate, and what is told is the median of their ratios.
"""
