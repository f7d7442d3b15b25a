"""What folders, lists, file names and file headers tell."""
