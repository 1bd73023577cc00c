"""Care of data sets: download, audit, re-encode."""
