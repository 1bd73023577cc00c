"""From files on disk to batches on the mesh. `dataset[i]` is pure, and so is which i comes when."""
