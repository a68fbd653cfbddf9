"""The commands of `python -m jointmae.data`, one a file; free of torch until one of them works."""
