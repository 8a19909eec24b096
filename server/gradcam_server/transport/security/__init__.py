"""Who may call, and how much: TLS, tokens, limits. The threat model is docs/security.md.

tls.py       certificates, read again when their files change
tokens.py    the token file, read again when it changes
limits.py    a rate and a number of calls at once
caller.py    the token of the current call, for services that count the images of a stream
access.py    the interceptor that lets calls in
listening.py which addresses may be listened on, and how connections must behave
"""
