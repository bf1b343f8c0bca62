"""The report of a recipe's run: one HTML file that needs nothing else."""
