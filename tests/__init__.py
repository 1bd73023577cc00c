"""A package, so that no other one of this name (some libraries install theirs) is found in its place."""
