"""How far a policy's chunks are from demonstrated ones, on episodes it was not trained on; nothing is played."""
