"""An engine in a process of its own: started, spoken to, watched, started again. Integers there, text here.

Door: `AsyncEngine`, an `EngineClient`; the other side is `process.py`.
"""
