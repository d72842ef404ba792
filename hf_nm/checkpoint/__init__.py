"""Files that a person has: verified, packed, pruned, inspected, opened."""
