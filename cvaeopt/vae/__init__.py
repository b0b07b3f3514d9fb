"""The trainer: one network, one run. Knows nothing of Optuna or SQL."""
