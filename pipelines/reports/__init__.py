"""Pages and charts of runs and comparisons."""
