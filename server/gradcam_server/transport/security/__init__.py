"""Access control: TLS, tokens, limits. The threat model is docs/security.md.

tls.py        certificates, read again when their files change
tokens.py     the token file, read again when it changes
limits.py     limits on a rate and on concurrency
caller.py     the caller of the current call, and the use of its limits
access.py     the interceptor that admits calls
receiving.py  paces large messages
listening.py  which addresses may be served in plain text, and the limits of connections
files.py      notices changed files
"""
