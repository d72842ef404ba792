"""Running a sparse model."""
