"""One module a pipeline stage: what the notebook of the same number calls, for every seed, resuming where it stopped."""
