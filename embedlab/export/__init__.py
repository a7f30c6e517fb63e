"""Write what was trained in the formats of other libraries, none of which then needs embedlab."""
