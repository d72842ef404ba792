"""How a sparse checkpoint is written: manifest, folders, plain and packed files."""
