"""The command line: ``main`` dispatches, one module per command does the work."""
