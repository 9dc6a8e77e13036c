"""A question in words, answered with data: matched to a named query, or put into SQL by a model."""
