"""One recipe per file; the file's name is the recipe's name and its subcommand."""
