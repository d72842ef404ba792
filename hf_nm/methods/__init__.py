"""How N:M weights are trained."""
