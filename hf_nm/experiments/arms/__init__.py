"""Arms in one command: which runs they take, running several at a time, their table and figures."""
