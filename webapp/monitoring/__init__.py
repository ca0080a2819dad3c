"""The figures that pages, commands and metrics share, and `doctor`."""
