"""From a model to a table: scoring, statistics, tables, figures."""
