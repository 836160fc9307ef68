"""Conformance suites and fakes, shipped so that you can test your own backends.

A suite is a class of test functions. To test a backend, derive a class from the suite in your tests and define the
fixture that its docstring names. pytest finds and runs the tests.
"""
