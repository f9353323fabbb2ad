"""From a checkpoint to a quantised graph, tiles, a static schedule and an image."""
