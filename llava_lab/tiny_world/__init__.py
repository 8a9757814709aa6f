"""World: a seed -> pictures, conversations and questions in the official file formats."""
