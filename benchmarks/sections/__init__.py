"""One module a part of the benchmarks: each measures, prints its tables, and says what holds."""
