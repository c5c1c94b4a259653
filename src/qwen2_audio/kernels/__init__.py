"""Compiled code for what torch does slowly, each piece beside its plain version; used where it runs, never needed."""
