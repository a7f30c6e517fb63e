"""Studies: a YAML grid of strategies and seeds, checked, and run in processes of their own."""
