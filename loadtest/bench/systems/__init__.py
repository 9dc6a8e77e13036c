"""The systems that are measured, one module each: how it is started, what a question looks like to it, how it is stopped."""
