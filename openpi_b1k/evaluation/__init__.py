"""Does it act, and do we compute what the reference implementations compute?"""
