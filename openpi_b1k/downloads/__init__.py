"""How files get from a server onto this disk, whole, and from this disk onto one that reaches no server."""
