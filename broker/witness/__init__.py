"""A small complete witness for a second organisation to run: it cosigns a log that it has seen only grow."""
