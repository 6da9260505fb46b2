"""Data that the package carries: subsets of Fashion-MNIST and of MNIST (see `make`)."""
