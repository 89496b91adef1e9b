"""Bodies of requests and answers, one file for each family of routes. The OpenAPI document is made from them.

Every integer has a maximum, every list of small things a longest length. What a body may hold beyond its types is
checked where it is used.
"""
