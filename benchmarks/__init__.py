"""How fast embedlab does a job beside the usual way of doing it; README.md says how each figure is measured."""
