"""Sparse training inside transformers' Trainer."""
