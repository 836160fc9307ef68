"""Running a script again from its commit, packages and command, and comparing the results."""
