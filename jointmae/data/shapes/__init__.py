"""Files of one cloud or mesh, one format a file, from their bytes."""
