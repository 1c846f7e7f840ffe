"""The voting page: raters compare two blind answers in a browser."""
