"""Train, validate and apply one network. This package uses neither Optuna nor SQL."""
