"""The whole program on several hosts, which are pretended (tests/lab); all else is real."""
