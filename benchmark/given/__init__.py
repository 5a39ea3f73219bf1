"""What users give, before anybody reads it: files that end, YAML that stays small, names and texts that harm nobody.

In: paths, texts, numbers. Out: the same, or an error of one line. All rooms below may import it; it loads no torch.
"""
