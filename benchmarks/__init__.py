"""Benchmarks: ratios to a floor or another server, measured in the same run on the same machine.

`python -m benchmarks` runs them all. Every case has a process of its own. The runs of a case and of
the floor or server that it is compared with alternate, and the reported result is the median of
their ratios.
"""
