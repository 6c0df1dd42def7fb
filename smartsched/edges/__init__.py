"""One outside thing per file. Edges know the core and never each other."""
