"""A soak: every hostile input at once against one node, together with clients that behave well."""
