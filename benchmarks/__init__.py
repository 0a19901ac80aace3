"""One file per claim, named by it; README.md is the table of claims."""
