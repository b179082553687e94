"""The entries of the op table, one module a family. Nothing imports these modules but the table, which imports all."""
