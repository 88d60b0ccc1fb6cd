"""Names of variants that files and recipes know without loading them."""

PUBLISHED = "abstopk"  # the experiment's, and of every file that does not say
