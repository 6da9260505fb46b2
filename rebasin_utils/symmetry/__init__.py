"""Permutations of hidden units: which there are, which one matches two networks.

A library by itself: nothing here knows of a study, a data set or a way of training.
"""
