"""The nodes that the graph shows: schemas and thin glue, one file per family."""
