"""From new widths and levels to a new model of the same class, with weights carried over."""
