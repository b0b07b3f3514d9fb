"""The search: what to train next, and how many workers share it through SQL."""
