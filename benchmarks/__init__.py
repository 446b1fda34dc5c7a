"""Side by side against what a user would otherwise run."""
