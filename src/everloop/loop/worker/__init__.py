"""The worker: it reconciles the loops of a project and starts the runs that are due."""
