"""Synthetic fine-tuning data, chosen by its measured influence on the model that it is for."""
