"""A soak: every hostile input at once against one node, beside clients that behave well."""
