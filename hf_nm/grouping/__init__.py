"""N:M weights in groups that an optimizer's step treats with one call each."""
