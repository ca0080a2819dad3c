"""Parts that tests, chaos and benchmarks share: servers, processes, and those who visit."""
