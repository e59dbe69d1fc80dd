"""What each MLproject entry point does, one module each."""
