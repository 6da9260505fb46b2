"""From a model to the axes that move together: capture its graph, walk it, read off the groups."""
