"""What ends a run: a result that is wrong or missing, a program that does not start."""


class BenchmarkFailed(Exception):
    """The figures of this run cannot be trusted."""
