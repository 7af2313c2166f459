"""Other projects' weights by our names: where they are read from, what their keys are called, what they start."""
