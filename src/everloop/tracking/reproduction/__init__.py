"""Reproduction of runs: run a script again from its commit, packages and command, and compare the results."""
