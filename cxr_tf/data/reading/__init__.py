"""Reading of folders, lists, file names and file headers."""
