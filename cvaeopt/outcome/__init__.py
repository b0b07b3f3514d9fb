"""The results of a finished study: a recipe, a long run, predictions and a report."""
