"""Conformance suites and fakes, shipped so that others can prove their backends.

A suite is a plain class of test functions. To prove a backend, derive from it in your own tests and give the
fixture that its docstring names; pytest finds and runs the rest.
"""
