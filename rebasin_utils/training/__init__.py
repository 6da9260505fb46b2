"""Dense and masked training, of many runs at once, and iterative magnitude pruning."""
