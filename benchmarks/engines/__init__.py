"""Text engines beside what one would otherwise run, and the cost of our own code."""
