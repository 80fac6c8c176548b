"""Parts of the reader: which clusters there are, what they look like, and the search for those that explain a strip."""
