"""Where labelled images come from: one module for each data set."""
