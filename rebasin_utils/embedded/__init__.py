"""Data that the package carries: a subset of Fashion-MNIST (see `make`)."""
