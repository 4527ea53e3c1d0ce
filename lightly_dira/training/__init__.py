"""Who steps what in a run, what it is checked for, and what resuming needs."""
