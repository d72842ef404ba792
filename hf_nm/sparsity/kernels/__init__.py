"""What happens around an optimizer's step as fused kernels, for many weights of a GPU at a time."""
