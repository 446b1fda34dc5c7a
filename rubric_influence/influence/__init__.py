"""How much a training sample lowers the target's validation loss: moments, examples, exact scores and their oracle."""
