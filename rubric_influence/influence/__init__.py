"""How much a training sample lowers a model's validation loss, exactly under Adam; docs/influence.md teaches it.

examples, samples        what is scored: token ids with labels, and records with ids
layers, moments          which parameters, and Adam's state of them;  trainer_checkpoints: out of a Trainer's folder
gradients, directions    many samples' gradients in one backward; the validation set's, by groups
scorers                  the estimators;  corpus: many samples, over processes, resumable
reference, oracle        what scores are held to: fp64 autograd, real optimizer steps
retraining, agreement    and what training on sets of samples gains;  embeddings: what influence has to beat
"""
