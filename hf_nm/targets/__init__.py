"""Which weights of a model become N:M: what can be, where it is, and the rule."""
