"""What caching and scheduling do to the answers: cells of a benchmark, each beside its all-resident reference."""
