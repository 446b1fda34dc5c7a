"""Does memory grow with the corpus? (`python -m benchmarks.scale`)"""
