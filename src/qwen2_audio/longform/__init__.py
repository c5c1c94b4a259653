"""Recordings of any length, without torch: what to ask of each window, what to make of the answer, subtitles."""
