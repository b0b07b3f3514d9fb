"""What a finished study becomes: a recipe, a long run, predictions, a report."""
