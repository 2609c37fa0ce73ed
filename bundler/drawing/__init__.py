"""Plans as people see them: text, bars and SVG."""
