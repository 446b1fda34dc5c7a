"""The embedded lab: a small invented world in which every claim of the method can be tested with ground truth known."""
