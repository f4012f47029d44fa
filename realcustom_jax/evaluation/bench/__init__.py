"""The command `bench`: the pictures that a benchmark asks for, made and scored."""
