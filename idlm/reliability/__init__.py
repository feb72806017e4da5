"""Programs that disturb real runs and measure what comes of it (docs/reliability.md).

Each writes its figures into one section of a JSON file; that of the project is
``eval/results/reliability.json``.
"""
