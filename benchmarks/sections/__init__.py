"""The parts of the benchmarks, one module each: it measures, prints its tables, and says which targets are met."""
