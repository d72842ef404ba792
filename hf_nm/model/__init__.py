"""A sparse model: the state of its weights, its layers, and the surgery between dense and sparse."""
