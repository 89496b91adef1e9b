"""The routes, one file for each family. A route gets a typed body and returns an answer; it never sees a socket."""
