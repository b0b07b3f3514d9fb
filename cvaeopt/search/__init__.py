"""What a study searches: its definition in TOML, and its search space."""
