"""`python -m examples.train_tiny`: make the model from nothing but a seed."""

from examples.train_tiny.train import main

main()
