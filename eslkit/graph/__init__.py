"""From a model to its channel groups and levels: the graph, and what is read off it."""
