"""Benches on data whose distribution is known exactly: ``idlm bench``."""
