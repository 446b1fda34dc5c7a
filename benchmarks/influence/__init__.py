"""The exact influence scorer against batch-1 autograd, random projection and installable peers."""
