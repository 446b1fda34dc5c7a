"""One module a pipeline stage: what its notebook calls, for every seed, resuming where it stopped."""
