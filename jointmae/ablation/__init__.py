"""Comparisons of training runs that differ in a few options: the paper's tables 6 to 8, baselines, and one's own."""
