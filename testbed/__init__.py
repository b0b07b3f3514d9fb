"""What the tests and the benchmarks share: tiny data, a throw-away PostgreSQL, and a proxy that disturbs it."""
