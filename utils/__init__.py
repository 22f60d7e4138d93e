"""Losses, metrics, the training and evaluation loops, run folders and pictures."""
